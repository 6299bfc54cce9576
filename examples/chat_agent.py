"""An agent of one's own: a loop on the official client (docs/agents.md)."""

import openai


async def run(episode, sandbox, base_url, key):
    talk = [{"role": "system", "content": episode.system}, {"role": "user", "content": episode.instruction}]
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        while True:
            answer = await client.chat.completions.create(model="policy", messages=talk)
            message = answer.choices[0].message
            if message.content.strip() == "submit":
                return
            result = await sandbox.exec(message.content, timeout_s=5)
            talk += [message.model_dump(), {"role": "user", "content": result.output}]
