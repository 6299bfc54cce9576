// The turns of an episode, of which those in view are asked for, a page at a time, and kept.
import { useEffect, useRef, useState } from "preact/hooks";
import { ask } from "./api.js";
import { legend, MODES, tokenClass } from "./colors.js";
import { count, number, plural, seconds, signed } from "./format.js";
import { Badge } from "./parts.jsx";
import { VirtualList } from "./virtual.jsx";

const PAGE = 10;
const LINE_CHARS = 110;
const KEPT_PAGES = 60;

function estimate(turns, i) {
  const lines = Math.ceil((turns.action[i] * 4) / LINE_CHARS) + Math.min(14, Math.ceil((turns.observation[i] * 4) / LINE_CHARS));
  return 78 + 20 * Math.max(2, Math.min(60, lines));
}

export function Turns({ id, turns, gaps, handle, onView }) {
  const [mode, setMode] = useState(localStorage.getItem("colour") || "logprob");
  const [, redraw] = useState(0);
  const pages = useRef(new Map());
  const asked = useRef(new Set());
  const n = turns.action.length;
  const known = useRef(n);
  if (known.current !== n) {
    pages.current.delete(Math.floor((known.current - 1) / PAGE)); // the last page was not full: the episode goes on
    known.current = n;
  }
  const load = async (page) => {
    if (pages.current.has(page) || asked.current.has(page)) return;
    asked.current.add(page);
    try {
      const answer = await ask("turns", { id, first: page * PAGE, last: Math.min(n, (page + 1) * PAGE) });
      pages.current.set(page, answer.turns);
      if (pages.current.size > KEPT_PAGES) pages.current.delete(pages.current.keys().next().value);
    } catch (error) {
      pages.current.set(page, { problem: error.message });
    }
    asked.current.delete(page);
    redraw((k) => k + 1);
  };
  const inView = (first, last, top, bottom) => {
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page++) load(page);
    onView(top, bottom);
  };
  const whole = async (i) => {
    const answer = await ask("turns", { id, first: i, last: i + 1, tokens: 500000, chars: 2000000 });
    const page = pages.current.get(Math.floor(i / PAGE)).slice();
    page[i % PAGE] = answer.turns[0];
    pages.current.set(Math.floor(i / PAGE), page);
    redraw((k) => k + 1);
  };
  const item = (i) => {
    const page = pages.current.get(Math.floor(i / PAGE));
    return <Turn i={i} turns={turns} data={page && (page.problem ? page : page[i % PAGE])} mode={mode} gap={gaps} whole={whole} />;
  };
  const choose = (value) => {
    localStorage.setItem("colour", value);
    setMode(value);
  };
  return (
    <section class="card turns">
      <div class="line-head">
        <span class="choice" data-testid="modes">{MODES.map((m) => <button key={m.id} title={m.hint} class={mode === m.id ? "on" : ""} onClick={() => choose(m.id)} data-testid={`mode-${m.id}`}>{m.name}</button>)}</span>
        <span class="legend">{legend(mode, turns).map(([style, name]) => <span key={style + name}><i class={`t ${style}`} />{name}</span>)}</span>
        {mode === "gap" && !gaps && <span class="dim">of this episode no log-probs of the learner are kept: it was not trained, or learner.keep_logprobs is off</span>}
      </div>
      <VirtualList count={n} estimate={(i) => estimate(turns, i)} item={item} onRange={inView} handle={handle} />
      <TokenNote />
    </section>
  );
}

function Turn({ i, turns, data, mode, whole }) {
  const start = turns.context_start[i];
  const before = i > 0 ? turns.context_start[i - 1] ?? 0 : 0;
  const cut = start !== null && i > 0 && start > before;
  const exit = turns.exit_code[i];
  const versions = turns.oldest[i] === turns.newest[i] ? `v${turns.oldest[i]}` : `v${turns.oldest[i]}–${turns.newest[i]}`;
  return (
    <article class="turn" data-testid={`turn-${i}`}>
      {cut && <Cut turns={turns} from={before} to={start} i={i} />}
      <h3>
        <span class="index">{i}</span>
        {turns.follows[i] !== null && turns.follows[i] !== i - 1 && <Badge>{turns.follows[i] < 0 ? "begins a branch" : `goes on from ${turns.follows[i]}`}</Badge>}
        <span class="facts">
          {seconds(turns.seconds[i])} · saw {count(turns.context[i])} · wrote {count(turns.action[i])} · {versions}
          {turns.logprob_mean[i] !== null && <> · log-prob {number(turns.logprob_mean[i])} (least {number(turns.logprob_min[i])})</>}
        </span>
        {turns.masked[i] ? <Badge kind="warn" title={turns.masked[i]}>masked: {turns.masked[i]}</Badge> : turns.advantage[i] !== null && <Badge kind={turns.advantage[i] > 0 ? "plus" : turns.advantage[i] < 0 ? "minus" : ""} title={turns.window[i]}>advantage {signed(turns.advantage[i])}</Badge>}
        {turns.interrupted[i] && <Badge kind="warn">interrupted</Badge>}
        {exit !== null && <Badge kind={exit ? "bad" : "good"}>exit {exit}</Badge>}
        {turns.left_at[i] !== null && <span class="left">left the context at turn {turns.left_at[i]}</span>}
      </h3>
      {!data ? <div class="loading">…</div> : data.problem ? <p class="problem">{data.problem}</p> : <Body i={i} turns={turns} data={data} mode={mode} whole={whole} />}
    </article>
  );
}

function Cut({ turns, from, to, i }) {
  let tokens = 0;
  for (let k = from; k < to; k++) tokens += turns.action[k] + turns.observation[k];
  const which = to - from === 1 ? `turn ${from}` : `turns ${from} to ${to - 1}`;
  return <p class="cut" data-testid={`cut-${i}`}><span>{which} left the context here: {plural(tokens, "token")}. The model goes on with the task and turns {to} to {i - 1}.</span></p>;
}

function Body({ i, turns, data, mode, whole }) {
  const cut = data.pieces.length < data.action_tokens;
  const long = cut || !data.observation_whole || data.observation.text.length < data.observation.chars;
  return (
    <>
      {data.prompt && <Long text={data.prompt.text} name="prompt" />}
      <Tokens i={i} turns={turns} data={data} mode={mode} />
      {data.command.text && <div class="command" title="the command that was run"><span>$</span><code>{data.command.text}</code></div>}
      {data.observation.text && <Long text={data.observation.text} name="output" />}
      {long && <button class="more" onClick={() => whole(i)}>show all {plural(turns.action[i] + turns.observation[i], "token")}</button>}
    </>
  );
}

function Tokens({ i, turns, data, mode }) {
  const trained = turns.advantage[i] !== null && !turns.masked[i];
  const shared = { advantage: turns.masked[i] ? null : turns.advantage[i], trained, masked: Boolean(turns.masked[i]) };
  const spans = [];
  let run = 0;
  let left = data.versions.length ? data.versions[0][1] : 0;
  for (let k = 0; k < data.pieces.length; k++) {
    while (left === 0 && run + 1 < data.versions.length) left = data.versions[++run][1];
    left--;
    const version = data.versions[run] ? data.versions[run][0] : 0;
    const gap = data.gaps && data.gaps[k] !== null ? data.gaps[k] : null;
    const style = tokenClass(mode, { ...shared, version, logprob: data.logprobs[k], gap });
    spans.push(<span key={k} class={`t ${style}`} data-n={`${k},${data.logprobs[k]},${version},${gap === null ? "" : gap}`}>{data.pieces[k]}</span>);
  }
  return <pre class="tokens">{spans}</pre>;
}

function Long({ text, name }) {
  const [open, setOpen] = useState(false);
  const tall = text.length > 1400 || text.split("\n", 16).length > 14;
  return (
    <div class={`long ${name}`}>
      <pre class={tall && !open ? "closed" : ""}>{text}</pre>
      {tall && <button class="more" onClick={() => setOpen(!open)}>{open ? "less" : `all ${plural(text.length, "character")} of the ${name}`}</button>}
    </div>
  );
}

// What the token under the pointer is: one note for the page, moved by hand, so that thousands of tokens need none each.
function TokenNote() {
  const note = useRef(null);
  useEffect(() => {
    const moved = (event) => {
      const token = event.target.closest && event.target.closest(".tokens .t");
      const node = note.current;
      if (!node) return;
      if (!token) {
        node.hidden = true;
        return;
      }
      const [index, logprob, version, gap] = token.dataset.n.split(",");
      node.textContent = `token ${index} · log-prob ${logprob} (p ${Math.exp(Number(logprob)).toPrecision(3)}) · version ${version}${gap === "" ? "" : ` · learner − sampler ${gap}`}`;
      node.style.left = `${Math.min(event.clientX + 12, innerWidth - 340)}px`;
      node.style.top = `${event.clientY + 18}px`;
      node.hidden = false;
    };
    document.addEventListener("mousemove", moved);
    return () => document.removeEventListener("mousemove", moved);
  }, []);
  return <div class="note" ref={note} hidden />;
}
