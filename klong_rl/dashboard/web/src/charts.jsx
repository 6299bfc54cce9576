// Charts by learner step, with the stages shaded, and small lines without axes.
import uPlot from "uplot";
import { useEffect, useRef, useState } from "preact/hooks";
import { isNumber, number } from "./format.js";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function stageBands(stages) {
  return {
    hooks: {
      drawClear: (u) => {
        const { ctx, bbox } = u;
        ctx.save();
        ctx.fillStyle = css("--band");
        for (let first = 0; first < stages.length; ) {
          let last = first;
          while (last + 1 < stages.length && stages[last + 1] === stages[first]) last++;
          if (stages[first] % 2 === 0) {
            const left = Math.max(bbox.left, u.valToPos(u.data[0][first] - 0.5, "x", true));
            const right = Math.min(bbox.left + bbox.width, u.valToPos(u.data[0][last] + 0.5, "x", true));
            if (right > left) ctx.fillRect(left, bbox.top, right - left, bbox.height);
          }
          first = last + 1;
        }
        ctx.restore();
      },
    },
  };
}

// `series`: [{name, values, color (1 to 6), format}]; `stack`: each line lies on those before it.
export function StepChart({ title, unit, steps, stages, series, stack, log, top, height = 190 }) {
  const box = useRef(null);
  const plot = useRef(null);
  const [at, setAt] = useState(null);
  const shown = series.filter((each) => each.values && each.values.some(isNumber));
  const values = shown.map((each) => each.values.map((v) => (isNumber(v) && !(log && v <= 0) ? v : null)));
  const drawn = stack ? stacked(values) : values;
  const signature = shown.map((each) => each.name).join();
  useEffect(() => {
    if (!shown.length) return undefined;
    const axis = { stroke: css("--dim"), grid: { stroke: css("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const lines = shown.map((each) => {
      const color = css(`--series-${each.color}`);
      return { label: each.name, stroke: color, width: stack ? 1 : 1.6, fill: stack ? color : undefined, points: { show: steps.length < 2, size: 5 }, spanGaps: true };
    });
    const least = stack ? 0 : top;
    const range = least === undefined ? undefined : (_, low, high) => [Math.min(0, low), Math.max(least, high * 1.04)];
    const options = {
      width: box.current.clientWidth,
      height,
      legend: { show: false },
      cursor: { sync: { key: "steps" }, y: false, points: { size: 6 } },
      scales: { x: { time: false }, y: log ? { distr: 3 } : range ? { range } : {} },
      axes: [{ ...axis, size: 26 }, { ...axis, size: 52, values: (_, ticks) => ticks.map((t) => (t === null ? "" : number(t))) }],
      series: [{}, ...lines],
      bands: stack ? lines.slice(1).map((_, i) => ({ series: [i + 2, i + 1] })) : [],
      plugins: [stageBands(stages)],
      hooks: { setCursor: [(u) => setAt(u.cursor.idx ?? null)] },
    };
    plot.current = new uPlot(options, [steps, ...drawn], box.current);
    const node = box.current; // the box is gone from its ref before what follows it is told
    const resized = new ResizeObserver(() => node.clientWidth && plot.current.setSize({ width: node.clientWidth, height }));
    resized.observe(node);
    return () => {
      resized.disconnect();
      plot.current.destroy();
    };
  }, [signature, steps.length]);
  if (!shown.length) return null;
  const index = at === null || at >= steps.length ? steps.length - 1 : at;
  return (
    <figure class="chart card">
      <figcaption>
        <b>{title}</b> {unit && <span class="dim">{unit}</span>}
        <span class="at dim">step {steps[index]}</span>
      </figcaption>
      <div class="keys">
        {shown.map((each) => (
          <span key={each.name}><i class={`key k${each.color}`} />{each.name} <b>{(each.format || number)(each.values[index])}</b></span>
        ))}
      </div>
      <div ref={box} />
    </figure>
  );
}

function stacked(values) {
  const sums = [];
  return values.map((line) =>
    line.map((value, i) => {
      sums[i] = (sums[i] || 0) + (value || 0);
      return sums[i];
    }),
  );
}

export function Spark({ values, top, width = 150, height = 28 }) {
  const known = values.filter(isNumber);
  if (known.length < 2) return <svg class="spark" width={width} height={height} />;
  const high = top || Math.max(...known, 1e-9);
  const x = (i) => ((width - 2) * i) / (values.length - 1) + 1;
  const y = (v) => height - 2 - (Math.min(v, high) / high) * (height - 4);
  const points = values.map((v, i) => (isNumber(v) ? `${x(i).toFixed(1)},${y(v).toFixed(1)}` : "")).filter(Boolean);
  return <svg class="spark" width={width} height={height}><polyline points={points.join(" ")} /></svg>;
}
