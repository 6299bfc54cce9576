import { useAnswer } from "./api.js";
import { StepChart } from "./charts.jsx";
import { percent, score, seconds } from "./format.js";
import { Card, Problem, Tile } from "./parts.jsx";

// The parts of a step's wall time that are told one by one; what is left of `learner_s` is the rest of the learner.
export function anatomy(columns) {
  const of = (name, i) => (columns[name] && columns[name][i]) || 0;
  const parts = { wait: [], forward: [], optimizer: [], other: [], publish: [] };
  columns.step.forEach((_, i) => {
    const forward = of("forward_backward_s", i);
    const optimizer = of("optimizer_s", i);
    parts.wait.push(of("wait_s", i));
    parts.forward.push(forward);
    parts.optimizer.push(optimizer);
    parts.other.push(Math.max(0, of("learner_s", i) - forward - optimizer));
    parts.publish.push(of("publish_s", i));
  });
  return [
    { name: "waiting for windows", values: parts.wait, color: 6, format: seconds },
    { name: "forward and backward", values: parts.forward, color: 1, format: seconds },
    { name: "optimizer", values: parts.optimizer, color: 2, format: seconds },
    { name: "fetch and other", values: parts.other, color: 5, format: seconds },
    { name: "publish", values: parts.publish, color: 3, format: seconds },
  ];
}

const CHARTS = (c) => [
  { title: "Reward", top: 1, series: [["mean score", "reward_mean", 1, score], ["solved", "solved_fraction", 2, percent]] },
  { title: "Step time", unit: "s, stacked", stack: true, anatomy: true, series: [] },
  { title: "Sampler and learner apart", unit: "nats, |log-prob difference|", log: true, series: [["max", "logprob_gap_max", 4], ["mean", "logprob_gap_mean", 1], ["99%", "logprob_gap_p99", 5]] },
  { title: "Staleness", unit: "versions", series: [["oldest token", "staleness_max", 4], ["mean", "staleness_mean", 1]] },
  { title: "Throughput", unit: "tokens/s trained", top: 0, series: [["tokens/s", "tokens_per_s", 2]] },
  { title: "Turns and cuts", series: [["turns", "turns_mean", 1], ["cut by a limit", "cut_share", 4, percent]] },
  { title: "Entropy", unit: "nats a token", series: [["estimate", "entropy_estimate", 5], ["exact", "entropy", 1]] },
  { title: "KL to the sampler", unit: "nats", series: [["k3", "kl_sampler_k3", 1], ["kl", "kl", 3]] },
  { title: "Importance ratio", series: [["1%", "ratio_p01", 6], ["mean", "ratio_mean", 1], ["99%", "ratio_p99", 4]] },
  { title: "Clipped", unit: "share of tokens", top: 0.01, series: [["clipped", "clip_fraction", 4, percent]] },
  { title: "Gradient norm", series: [["norm", "grad_norm", 3]] },
  { title: "Loss", series: [["loss", "loss", 1]] },
  { title: "Groups ahead", series: [["ahead", "pacing_groups_ahead", 1], ["wanted", "pacing_groups_wanted", 6]] },
  { title: "Episodes under way", series: [["running", "pacing_episodes", 2], ["slots", "pacing_slots", 6]] },
];

export function Curves({ about }) {
  const { data, problem } = useAnswer("steps", {}, about && about.up ? 4000 : 15000);
  if (!data) return <main><Problem text={problem} /></main>;
  const n = data.step.length;
  const last = (name) => (data[name] ? data[name][n - 1] : undefined);
  return (
    <main data-testid="curves">
      <Problem text={problem} />
      {n === 0 ? <Card><p class="dim">No learner step has ended yet. The fleet and the episodes can be seen meanwhile.</p></Card> : (
        <>
          <div class="tiles">
            <Tile name="step" value={data.step[n - 1]} note={about && `of at most ${about.stages.reduce((sum, s) => sum + (s.steps || 0), 0)}`} />
            <Tile name="stage" value={last("stage")} note={`timeout ${seconds(last("timeout_s"))}`} />
            <Tile name="reward" value={score(last("reward_mean"))} note={`${percent(last("solved_fraction"))} solved`} />
            <Tile name="policy version" value={last("policy_version")} note={`staleness ${last("staleness_max")}`} />
            <Tile name="step time" value={seconds(last("wait_s") + last("learner_s") + last("publish_s"))} note={`${seconds(last("wait_s"))} waiting`} />
            {about && about.summary && <Tile name="wall time" value={seconds(about.summary.wall_s)} />}
          </div>
          {about && about.summary && <HeldOut stages={about.summary.stages} />}
          <div class="grid">
            {CHARTS(data).map((chart) => (
              <StepChart key={chart.title} {...chart} steps={data.step} stages={data.stage}
                series={chart.anatomy ? anatomy(data) : chart.series.map(([name, key, color, format]) => ({ name, color, format, values: data[key] }))} />
            ))}
          </div>
        </>
      )}
    </main>
  );
}

function HeldOut({ stages }) {
  return (
    <Card title="Held-out tasks" note="mean score, at the settings of each stage">
      <table class="plain">
        <thead><tr><th>stage</th><th>timeout</th><th>cold start</th><th>before</th><th>after</th><th>steps</th><th>episodes</th></tr></thead>
        <tbody>
          {stages.map((s) => (
            <tr key={s.stage}>
              <td>{s.stage}</td><td>{seconds(s.timeout_s)}</td><td>{score(s.eval_cold_start)}</td><td>{score(s.eval_before)}</td>
              <td><b>{score(s.eval_after)}</b></td><td>{s.steps}</td><td>{s.episodes}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Card>
  );
}
