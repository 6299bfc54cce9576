import { useAnswer } from "./api.js";
import { Spark } from "./charts.jsx";
import { anatomy } from "./curves.jsx";
import { count, megabytes, percent, plural, seconds } from "./format.js";
import { Card, Meter, Problem, Split, Tile } from "./parts.jsx";

const STATES = [["queued", "waits for a slot", 6], ["running", "an agent acts", 1], ["sealed", "waits for its verdict", 5], ["judged", "scored", 2], ["dropped", "ended without a score", 4]];

export function Fleet({ about }) {
  const { data, problem } = useAnswer("fleet", {}, 2000);
  const steps = useAnswer("steps", {}, 8000).data;
  if (!data) return <main><Problem text={problem} /></main>;
  const { fleet, buffer } = data;
  const now = fleet.now;
  return (
    <main data-testid="fleet">
      <Problem text={problem} />
      {!fleet.up && <p class="dim">The run is not up: {now.at ? "this is what it told last" : "it told nothing of its fleet"}.{buffer ? ` Queues are read from ${buffer.source}.` : ""}</p>}
      {data.problem && <p class="dim">{data.problem}</p>}
      {now.at && (
        <div class="tiles">
          <Tile name="phase" value={now.phase} note={now.stage ? `stage ${now.stage}` : ""} />
          <Tile name="sampling" value={`${count(now.tokens_per_s)} tokens/s`} note={plural(now.engines.length, "engine")} />
          <Tile name="episodes under way" value={now.engines.reduce((sum, e) => sum + e.episodes, 0)} />
          {buffer && <Tile name="policy version" value={buffer.policy_version} note={`committed step ${buffer.committed_step}`} />}
          {buffer && <Tile name="Redis" value={megabytes(buffer.memory[0])} note={buffer.memory[1] ? `of ${megabytes(buffer.memory[1])}` : "no limit"} />}
        </div>
      )}
      <div class="grid">
        {now.engines && <Engines fleet={fleet} />}
        {now.sandboxes && <Sandboxes lines={now.sandboxes} />}
        {buffer && <Queues buffer={buffer} />}
        {buffer && <Windows buffer={buffer} about={about} />}
        {steps && steps.step.length > 0 && <Anatomy steps={steps} />}
        {buffer && <Reasons title="Dropped" note="episodes" rows={buffer.drops} />}
        {buffer && <Reasons title="Given back" note="episodes, to go on elsewhere" rows={buffer.requeues} />}
        {buffer && <Reasons title="Given up" note="action tokens" rows={buffer.discarded} />}
      </div>
    </main>
  );
}

function Engines({ fleet }) {
  return (
    <Card title="Engines" wide>
      <table class="plain">
        <thead><tr><th>actor</th><th>KV cache</th><th>episodes</th><th>waiting requests</th><th>tokens/s</th><th>last minutes</th><th>paused in all</th></tr></thead>
        <tbody>
          {fleet.now.engines.map((e) => (
            <tr key={e.actor}>
              <td>{e.actor}</td><td><Meter share={e.kv_use} /></td>
              <td><Meter share={e.slots ? e.episodes / e.slots : 0} text={`${e.episodes} of ${e.slots}`} /></td>
              <td>{e.waiting}</td><td>{count(e.tokens_per_s)}</td>
              <td><Spark values={(fleet.engines[e.actor] || { tokens_per_s: [] }).tokens_per_s} /></td><td>{seconds(e.paused_s)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Card>
  );
}

function Sandboxes({ lines }) {
  return (
    <Card title="Sandboxes" note="by host">
      {lines.length === 0 ? <p class="dim">none</p> : (
        <table class="plain">
          <thead><tr><th>host</th><th>state</th><th>sandboxes</th></tr></thead>
          <tbody>{lines.map((line) => <tr key={line.host + line.state}><td>{line.host}</td><td>{line.state}</td><td>{line.count}</td></tr>)}</tbody>
        </table>
      )}
    </Card>
  );
}

function Queues({ buffer }) {
  return (
    <Card title="Episodes">
      <table class="plain">
        <thead><tr><th>state</th><th /><th>episodes</th><th>oldest</th><th>median</th></tr></thead>
        <tbody>
          {STATES.map(([state, meaning, color]) => (
            <tr key={state}>
              <td><i class={`key k${color}`} />{state}</td><td class="dim">{meaning}</td><td>{buffer.states[state] || 0}</td>
              <td>{seconds((buffer.ages[state] || {}).oldest)}</td><td>{seconds((buffer.ages[state] || {}).median)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="dim">{plural(buffer.to_close, "group")} to be closed, {buffer.to_archive} to be archived</p>
    </Card>
  );
}

function Windows({ buffer, about }) {
  const most = Math.max(1, ...buffer.behind.map(([, tokens]) => tokens));
  return (
    <Card title="Windows" note="for the learner">
      <table class="plain">
        <tbody>
          <tr><td>ready</td><td>{buffer.windows.ready}</td><td>{count(buffer.ready_tokens)} tokens</td></tr>
          <tr><td>leased</td><td>{buffer.windows.leased}</td><td>{buffer.leases.map(([step, groups]) => `step ${step}: ${plural(groups, "group")}`).join(", ")}</td></tr>
          <tr><td>consumed</td><td>{buffer.windows.consumed}</td><td /></tr>
          <tr><td>dropped as stale</td><td>{buffer.windows.stale}</td><td /></tr>
        </tbody>
      </table>
      <h3>Ready, by versions behind {about && about.max_staleness !== null && <span class="dim">(bound {about.max_staleness})</span>}</h3>
      {buffer.behind.length === 0 ? <p class="dim">nothing is ready</p> : buffer.behind.map(([behind, tokens]) => (
        <div class="bar" key={behind}><span>{behind}</span><Meter share={tokens / most} text={`${count(tokens)} tokens`} /></div>
      ))}
    </Card>
  );
}

function Anatomy({ steps }) {
  const last = steps.step.length - 1;
  const from = Math.max(0, last - 19);
  const parts = anatomy(steps);
  const mean = (values) => values.slice(from).reduce((sum, v) => sum + v, 0) / (last - from + 1);
  return (
    <Card title="A learner step">
      <h3>step {steps.step[last]}</h3>
      <Split parts={parts.map((p) => ({ name: p.name, color: p.color, value: p.values[last] }))} format={seconds} />
      <h3>mean of the last {last - from + 1}</h3>
      <Split parts={parts.map((p) => ({ name: p.name, color: p.color, value: mean(p.values) }))} format={seconds} />
    </Card>
  );
}

function Reasons({ title, note, rows }) {
  const found = Object.entries(rows).sort((a, b) => b[1] - a[1]);
  if (!found.length) return null;
  return (
    <Card title={title} note={note}>
      <table class="plain"><tbody>{found.slice(0, 12).map(([reason, n]) => <tr key={reason}><td>{reason}</td><td>{count(n)}</td></tr>)}</tbody></table>
    </Card>
  );
}
