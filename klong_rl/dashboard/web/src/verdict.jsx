// The verdict of an episode, and all that it rests on.
import { useState } from "preact/hooks";
import { ask } from "./api.js";
import { number, plural, score, seconds } from "./format.js";
import { Badge, Card, Meter } from "./parts.jsx";

export function Verdict({ id, answer }) {
  const { verdict, record, record_problem: problem } = answer;
  if (answer.dropped) return <Card title="Dropped"><p class="problem">{answer.dropped}</p><p class="dim">An episode that is dropped has no verdict, and is never trained.</p></Card>;
  if (!verdict) return <Card title="Verdict"><p class="dim">not judged yet</p></Card>;
  const evidence = Object.entries(verdict.evidence).filter(([name]) => !["record", "signature"].includes(name));
  return (
    <Card title="Verdict">
      <div class="score" data-testid="score"><b>{score(verdict.score)}</b><Meter share={verdict.score} text=" " /></div>
      {Object.keys(verdict.parts).length > 0 && <table class="plain"><tbody>{Object.entries(verdict.parts).map(([name, value]) => <tr key={name}><td>{name}</td><td>{number(value)}</td></tr>)}</tbody></table>}
      {problem && <p class="problem">{problem}</p>}
      {record && (
        <p class="dim">
          {record.signature ? <Badge kind="good">signed</Badge> : <Badge>not signed</Badge>} {record.model && <>by {record.model} </>}on {new Date(record.at * 1000).toLocaleString()}
        </p>
      )}
      {evidence.map(([name, value]) => <Text key={name} name={name} text={value} />)}
      {record && <Record id={id} record={record} />}
    </Card>
  );
}

function Record({ id, record }) {
  return (
    <>
      {record.reads.length > 0 && <h3>files that were read</h3>}
      {record.reads.map((read, i) => <Blob key={i} id={id} blob={read.blob} name={read.path} note={read.blob ? "" : "there was none"} />)}
      {record.commands.length > 0 && <h3>commands that were run</h3>}
      {record.commands.map((c, i) => (
        <Blob key={i} id={id} blob={c.output} name={c.command} note={`exit ${c.exit_code}${c.is_fresh ? ", fresh container" : ""}${c.timed_out ? ", timed out" : ""}${c.truncated ? ", output cut" : ""}`} />
      ))}
      {record.calls.length > 0 && <h3>{plural(record.calls.length, "question")} to the judge</h3>}
      {record.calls.map((call, i) => (
        <div key={i}>
          <Blob id={id} blob={call.request} name={`${call.about || "question"}: request`} />
          <Blob id={id} blob={call.reply} name={`${call.about || "question"}: reply`} note={call.problem} />
        </div>
      ))}
      {Object.keys(record.kept).length > 0 && <h3>kept by the reward</h3>}
      {Object.entries(record.kept).map(([name, blob]) => <Blob key={name} id={id} blob={blob} name={name} />)}
    </>
  );
}

function Blob({ id, blob, name, note }) {
  const [content, setContent] = useState(null);
  const open = async () => {
    if (content) return setContent(null);
    try {
      setContent(await ask("content", { id, blob }));
    } catch (error) {
      setContent({ problem: error.message });
    }
  };
  return (
    <div class="blob">
      <button class="more" disabled={!blob} onClick={open}>{content ? "▾" : "▸"} <code>{name}</code></button> <span class="dim">{note}</span>
      {content && (content.problem ? <p class="problem">{content.problem}</p> : <pre>{content.text}{content.text.length < content.chars ? `\n… ${plural(content.chars, "character")} in all` : ""}</pre>)}
    </div>
  );
}

function Text({ name, text }) {
  const hash = /^[0-9a-f]{64}$/.test(text);
  return <div class="evidence"><span class="dim">{name}</span>{hash ? <code title={text}>{text.slice(0, 12)}…</code> : <pre>{text || "(empty)"}</pre>}</div>;
}

export function About({ answer }) {
  const { spec, record } = answer;
  const facts = [
    ["task", spec.task], ["stage", spec.stage], ["purpose", spec.purpose], ["state", spec.state], ["epoch", answer.epoch], ["trained in step", answer.step],
    ["timeout", record ? seconds(record.timeout_s) : null], ["turn limit", record && record.max_turns], ["reward", record && record.reward._target_], ["held by", spec.owner],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  return (
    <Card title="Episode">
      <dl>{facts.map(([name, value]) => <><dt>{name}</dt><dd>{value}</dd></>)}</dl>
      {answer.prefix && <details><summary>system and task, {plural(answer.prefix.tokens, "token")}, in every context</summary><pre>{answer.prefix.text}</pre></details>}
    </Card>
  );
}

export function Group({ answer }) {
  if (answer.group.length < 2) return null;
  return (
    <Card title="Its group" note={answer.spec.group}>
      <table class="plain rows">
        <tbody>
          {answer.group.map((member) => (
            <tr key={member.episode} class={member.episode === answer.spec.episode ? "on" : ""}>
              <td><a href={`#/episode/${encodeURIComponent(member.episode)}`}>{member.episode}</a></td>
              <td><Meter share={member.score} text={score(member.score)} /></td>
              <td class={member.advantage > 0 ? "plus" : member.advantage < 0 ? "minus" : "dim"}>{number(member.advantage)}</td>
              <td>{plural(member.turns, "turn")}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Card>
  );
}
