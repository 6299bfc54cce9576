import { useEffect, useRef, useState } from "preact/hooks";
import { useAnswer } from "./api.js";
import { Badge, Problem, outcomeKind } from "./parts.jsx";
import { TimeLine } from "./timeline.jsx";
import { Turns } from "./turns.jsx";
import { About, Group, Verdict } from "./verdict.jsx";

const FINAL = ["archived", "judged", "dropped"];

export function Episode({ id, turn }) {
  const [every, setEvery] = useState(0);
  const { data, problem } = useAnswer("episode", { id }, every);
  const [view, setView] = useState([0, 0]);
  const handle = useRef(null);
  const state = data && data.spec.state;
  useEffect(() => {
    if (data) setEvery(FINAL.includes(state) ? 0 : 3000);
  }, [state]);
  useEffect(() => {
    if (data && turn && handle.current) handle.current.show(turn);
  }, [Boolean(data), turn]);
  if (!data) return <main><Problem text={problem} /></main>;
  const n = data.turns.action.length;
  return (
    <main class="episode" data-testid="episode">
      <Problem text={problem} />
      <div class="title">
        <a href="#/episodes" class="dim">Episodes</a> <span class="dim">/</span> <h1>{id}</h1>
        {!FINAL.includes(state) && <Badge kind="live">{state}</Badge>}
        {data.outcome && <Badge kind={outcomeKind(data.outcome)} title={data.detail}>{data.outcome}</Badge>}
        {data.dropped && <Badge kind="bad">dropped</Badge>}
        {data.detail && <span class="dim">{data.detail}</span>}
        {!data.has_text && <span class="dim">The run keeps no tokenizer, so tokens are shown by their numbers.</span>}
      </div>
      <div class="columns">
        <div class="trajectory">
          {n === 0 ? <p class="card dim">No turn has ended yet.</p> : (
            <>
              <TimeLine turns={data.turns} view={view} onShow={(i) => handle.current && handle.current.show(i)} />
              <Turns id={id} turns={data.turns} gaps={data.has_gaps} handle={handle} onView={(first, last) => setView((old) => (old[0] === first && old[1] === last ? old : [first, last]))} />
            </>
          )}
        </div>
        <aside><Verdict id={id} answer={data} /><About answer={data} /><Group answer={data} /></aside>
      </div>
    </main>
  );
}
