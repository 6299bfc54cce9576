// All turns of an episode on one line: what the model saw, what it wrote, what failed, when something left its context.
import { useEffect, useRef, useState } from "preact/hooks";
import { count, plural, seconds, signed } from "./format.js";

const HEIGHT = 128;
const CONTEXT = 78; // px of the context's curve; below it a strip each for versions, advantage, exit codes
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function edges(turns, byTime) {
  const n = turns.action.length;
  if (!byTime) return Array.from({ length: n + 1 }, (_, i) => i / Math.max(1, n));
  const total = turns.seconds.reduce((sum, s) => sum + s, 0) || 1;
  const found = [0];
  for (const s of turns.seconds) found.push(found[found.length - 1] + s / total);
  return found;
}

export function turnAt(places, share) {
  let low = 0;
  let high = places.length - 2;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (places[middle] <= share) low = middle;
    else high = middle - 1;
  }
  return low;
}

function draw(canvas, turns, places, view) {
  const width = canvas.clientWidth;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = HEIGHT * scale;
  const ctx = canvas.getContext("2d");
  ctx.scale(scale, scale);
  const most = Math.max(1, ...turns.context.map((c, i) => c + turns.action[i]));
  const x = (i) => places[i] * width;
  const wide = (i) => Math.max(1, x(i + 1) - x(i) - (x(i + 1) - x(i) > 4 ? 1 : 0));
  const y = (tokens) => CONTEXT - (tokens / most) * (CONTEXT - 6);
  ctx.fillStyle = css("--view");
  ctx.fillRect(x(view[0]), 0, Math.max(2, x(Math.min(view[1] + 1, places.length - 1)) - x(view[0])), HEIGHT);
  turns.context.forEach((context, i) => {
    ctx.fillStyle = css("--series-1-soft");
    ctx.fillRect(x(i), y(context), wide(i), CONTEXT - y(context));
    ctx.fillStyle = css("--series-1");
    ctx.fillRect(x(i), y(context + turns.action[i]), wide(i), Math.max(1, y(context) - y(context + turns.action[i])));
    ctx.fillStyle = turns.newest[i] === null ? css("--none") : css(`--version-${turns.newest[i] % 8}`);
    ctx.fillRect(x(i), CONTEXT + 6, wide(i), 10);
    const advantage = turns.advantage[i];
    ctx.fillStyle = turns.masked[i] ? css("--masked") : advantage === null ? css("--none") : advantage > 0 ? css("--up") : advantage < 0 ? css("--down") : css("--zero");
    ctx.fillRect(x(i), CONTEXT + 20, wide(i), 10);
    ctx.fillStyle = turns.interrupted[i] ? css("--warn") : turns.exit_code[i] ? css("--bad") : turns.exit_code[i] === 0 ? css("--good") : css("--none");
    ctx.fillRect(x(i), CONTEXT + 34, wide(i), 10);
  });
  ctx.fillStyle = css("--bad");
  turns.context_start.forEach((start, i) => {
    if (i > 0 && start !== null && start > (turns.context_start[i - 1] ?? 0)) ctx.fillRect(x(i) - 0.75, 0, 1.5, CONTEXT);
  });
}

export function TimeLine({ turns, view, onShow }) {
  const canvas = useRef(null);
  const [byTime, setByTime] = useState(false);
  const [at, setAt] = useState(null);
  const places = edges(turns, byTime);
  useEffect(() => {
    const node = canvas.current;
    const again = () => node.clientWidth && draw(node, turns, places, view);
    again();
    const resized = new ResizeObserver(again);
    resized.observe(node);
    return () => resized.disconnect();
  }, [turns, view[0], view[1], byTime]);
  const pointed = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return turnAt(places, (event.clientX - box.left) / box.width);
  };
  const drag = (event) => event.buttons === 1 && onShow(pointed(event));
  return (
    <section class="card timeline">
      <div class="line-head">
        <span class="dim" data-testid="timeline-note">{at === null ? note(turns) : about(turns, at)}</span>
        <span class="choice">{[[false, "by turn"], [true, "by active time"]].map(([value, name]) => <button key={name} class={byTime === value ? "on" : ""} onClick={() => setByTime(value)}>{name}</button>)}</span>
      </div>
      <div class="line-body">
        <div class="line-names dim"><span>context</span><span>version</span><span>advantage</span><span>exit code</span></div>
        <canvas ref={canvas} height={HEIGHT} data-testid="timeline" onClick={(e) => onShow(pointed(e))}
          onMouseMove={(e) => { setAt(pointed(e)); drag(e); }} onMouseLeave={() => setAt(null)} />
      </div>
    </section>
  );
}

function note(turns) {
  const sum = (values) => values.reduce((total, v) => total + v, 0);
  const drops = turns.context_start.filter((start, i) => i > 0 && start !== null && start > (turns.context_start[i - 1] ?? 0)).length;
  const left = drops ? `, context cut ${drops === 1 ? "once" : `${drops} times`} (red lines)` : "";
  return `${plural(turns.action.length, "turn")}, ${count(sum(turns.action))} tokens sampled, ${count(sum(turns.observation))} observed, ${seconds(sum(turns.seconds))} active${left}`;
}

function about(turns, i) {
  if (turns.action[i] === undefined) return "";
  const versions = turns.oldest[i] === turns.newest[i] ? turns.oldest[i] : `${turns.oldest[i]}–${turns.newest[i]}`;
  const advantage = turns.masked[i] ? `masked: ${turns.masked[i]}` : turns.advantage[i] === null ? "not trained" : `advantage ${signed(turns.advantage[i])}`;
  return `turn ${i}: saw ${count(turns.context[i])} tokens, wrote ${turns.action[i]}, version ${versions}, ${advantage}, ${turns.command[i]}`;
}
