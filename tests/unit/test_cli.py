"""The command line: bad input is one clear line that names the key, the value and what is allowed."""

import subprocess
import sys

import pytest

from klong_rl.cli import load_config
from klong_rl.errors import UserError
from klong_rl.sft import load_sft_config

CHAT_AGENT = "examples.chat_agent.run"


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_default_configuration_is_whole():
    config, stage = load_config([])
    assert stage is None
    assert config.name == "nano-seed0"
    timeouts = [stage.timeout_s for stage in config.curriculum.stages]
    assert len(timeouts) == 3 and timeouts == sorted(timeouts), "timeouts grow"


def test_every_choice_under_conf_composes():
    for override in ("model=smollm2", "model=local model.source.path=/m"):
        load_config(override.split())


def test_a_url_of_several_hosts_is_quoted_and_may_come_from_the_environment(monkeypatch):
    url = "rediss+cluster://ann:p%40ss@a:7000,b:7000?ssl_ca_certs=/ca.pem"
    monkeypatch.setenv("KLONG_REDIS_URL", url)
    for override in (f"buffer.url='{url}'", "buffer.url=${oc.env:KLONG_REDIS_URL}"):
        config, _ = load_config([override])
        assert config.buffer.url == url


def test_an_agent_program_is_named_with_arguments_of_its_own():
    program = "examples.mini_swe_agent.run"
    config, _ = load_config([f"agent.program._target_={program}", "agent.program.command_timeout_s=5"])
    assert config.agent.program == {"_target_": program, "command_timeout_s": 5}


def test_a_stage_is_where_to_enter_and_no_setting():
    config, stage = load_config(["+stage=3", "seed=2"])
    assert (stage, config.seed, config.name) == (3, 2, "nano-seed2")


@pytest.mark.parametrize(
    "overrides, parts",
    [
        (["+stage=three"], ["+stage=three", "whole number"]),
        (["+stage=-1"], ["+stage=-1", "whole number"]),
        (["+stage=0"], ["+stage=0", "1 to 3"]),
        (["+stage=7"], ["+stage=7", "1 to 3"]),
        (["learner.optimizer.lrr=1"], ["learner.optimizer.lrr=1", "did you mean lr?", "weight_decay"]),
        (["modle=nano"], ["modle=nano", "did you mean model?"]),
        (["model=nanoo"], ["model=nanoo", "nano", "smollm2"]),
        (["learner.optimizer.lr=fast"], ["learner.optimizer.lr=fast", "Float"]),
        (["learner.optimizer.decay=step"], ["learner.optimizer.decay=step", "constant, linear, cosine"]),
        (["learner.optimizer.decay=cosine"], ["decay_steps=0", "warmup_steps=3", "above"]),
        (
            ["learner.optimizer.decay=linear", "learner.optimizer.decay_steps=9", "learner.optimizer.min_lr=1"],
            ["min_lr=1", "0 to", "lr=0.00012"],
        ),
        (["actors.count=many"], ["actors.count=many", "Integer"]),
        (["actors.count=0"], ["actors.count=0", "1 or more"]),
        (["agent.program.x=1"], ["agent.program", "_target_=my_agent.run"]),
        (["agent.program._target_=nowhere.run"], ["nowhere.run", "ModuleNotFoundError", "PYTHONPATH"]),
        (
            ["agent.program._target_=examples.chat_agent.run", "agent.rules.submit_after=0.5"],
            ["agent.rules", "leave it"],
        ),
        (["agent.program._target_=os.path.join"], ["os.path.join", "no async function"]),
        (
            ["agent.program._target_=examples.mini_swe_agent.run", "agent.endpoint.port=8000", "actors.count=2"],
            ["agent.endpoint.port=8000", "actors.count=2", "use 0"],
        ),
        (["rollout.group_size=1"], ["rollout.group_size=1", "2 or more"]),
        (["buffer.url=redis+sentinel://h"], ["buffer.url=redis+sentinel://h names no service", "/SERVICE"]),
        (["buffer.fsync=never"], ["buffer.fsync=never", "everysec or always"]),
        (["buffer.memory_mb=1"], ["buffer.memory_mb=1", "16 or more"]),
        (["buffer.deadline_s=0"], ["buffer.deadline_s=0", "above 0"]),
        (["sandbox.kind=vm"], ["sandbox.kind=vm", "docker or process"]),
        (["sandbox.kind=process"], ["sandbox.kind=process runs a model's commands as you", "allow_unisolated=true"]),
        (["sandbox.snapshot_gb=-1"], ["sandbox.snapshot_gb=-1", "0 sets no bound"]),
        (["sandbox.egress.ranges=[10.1.0.0/8]"], ["sandbox.egress.ranges", "10.1.0.0/8", "as in 10.1.0.0/16"]),
        (["learner.device=tpu"], ["learner.device=tpu", "cpu or cuda"]),
        (["engine.weight_transfer=fax"], ["engine.weight_transfer=fax", "klong_shared_memory, ipc or network"]),
        (["engine.weight_transfer=ipc"], ["ipc shares a GPU", "learner.device=cpu", "cluster=one_gpu"]),
        (["cluster=one_gpu", "learner.layout.data=2"], ["ipc is for one GPU", "2 ranks", "data=1"]),
        (["cluster=one_gpu", "learner.gpu_memory=1.4"], ["learner.gpu_memory=1.4", "at most 1"]),
        (["window.max_tokens=4096"], ["window.max_tokens=4096", "engine.max_model_len"]),
        (["curriculum=[{steps:1}]"], ["curriculum=[{steps:1}]", "allowed: klong, nano"]),
        (["curriculum.promotion.rule=never"], ["rule=never", "steps or adaptive"]),
        (["curriculum.promotion.running=kill"], ["running=kill", "finish or extend"]),
        (["curriculum.promotion.window=2"], ["window=2", "at least 3"]),
        (["curriculum.promotion.min_steps=4"], ["window=16", "at most min_steps=4"]),
        (["curriculum.promotion.cut_share=0"], ["cut_share=0", "above 0 to 1"]),
        (["curriculum.promotion.confidence=1"], ["confidence=1", "below 1"]),
        (["rollout.cut_episodes=drop"], ["cut_episodes=drop", "mask"]),
        (["curriculum.stages=[]"], ["number of curriculum.stages=0", "1 or more"]),
    ],
)
def test_bad_input_names_key_value_and_remedy(overrides, parts):
    message = refusal(*overrides)
    for part in parts:
        assert part in message


def test_the_program_says_it_in_one_line_and_exits_with_2():
    command = [sys.executable, "-m", "klong_rl.launch", "+stage=three"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.splitlines() == [
        "error: +stage=three is not a stage; use a whole number from 1, for example +stage=3"
    ]


SFT_REFUSALS = [
    ([], ["data= is missing", "JSONL"]),
    (["data=d", "dataa=x"], ["dataa=x", "did you mean data?"]),
    (["data=d", "model=nanoo"], ["model=nanoo", "smollm2"]),
    (["data=d", "actors.count=1"], ["there is no key actors.count"]),
    (["data=d", "epochs=0"], ["epochs=0", "1 or more"]),
    (["data=d", "held_out_share=1"], ["held_out_share=1", "below 1"]),
    (["data=d", "tokens_per_step=64"], ["tokens_per_step=64", "window.max_tokens=128"]),
    (["data=d", "window.max_tokens=512"], ["window.max_tokens=512", "engine.max_model_len=256"]),
    (["data=d", "name=a/b"], ["name='a/b'"]),
    (["data=d", "min_score=high"], ["min_score=high"]),
    (["data=d", "learner.device=tpu"], ["learner.device=tpu", "cpu or cuda"]),
    (["data=d", "learner.gpu_memory=2"], ["learner.gpu_memory=2", "at most 1"]),
]


@pytest.mark.parametrize("overrides, parts", SFT_REFUSALS, ids=[" ".join(o) or "nothing" for o, _ in SFT_REFUSALS])
def test_bad_input_to_a_fine_tuning_is_one_line_too(overrides, parts):
    with pytest.raises(UserError) as caught:
        load_sft_config(overrides)
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message


def test_a_fine_tuning_learns_at_the_rate_of_its_model_s_cold_start():
    config = load_sft_config(["data=d", "model=smollm2"])
    assert (config.learner.optimizer.lr, config.learner.optimizer.warmup_steps) == (1e-4, 4)
    assert load_sft_config(["data=d", "learner.optimizer.lr=0.5"]).learner.optimizer.lr == 0.5
