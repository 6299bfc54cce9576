import { useEffect, useState } from "preact/hooks";
import { useAnswer } from "./api.js";
import { count, score, seconds, signed } from "./format.js";
import { Badge, Meter, Problem, outcomeKind } from "./parts.jsx";

const PAGE = 100;
const COLUMNS = [
  ["episode", "episode"], ["task", "task"], ["stage", "stage"], ["purpose", "purpose"], ["state", "state"], ["outcome", "outcome"], ["score", "score"],
  ["advantage", "advantage"], ["turns", "turns"], ["tokens", "tokens"], ["seconds", "active time"], ["newest", "versions"], ["step", "step"],
];
const FACETS = ["stage", "purpose", "state", "outcome"];

export function Episodes({ parameters }) {
  const asked = { descending: "true", offset: "0", limit: PAGE, ...parameters };
  const { data, problem } = useAnswer("episodes", asked, 4000);
  const move = (changes) => {
    const next = Object.entries({ ...parameters, offset: "", ...changes }).filter(([, value]) => value !== "" && value !== null);
    location.hash = `#/episodes?${new URLSearchParams(next)}`;
  };
  const [text, setText] = useState(parameters.text || "");
  useEffect(() => {
    const timer = setTimeout(() => text !== (parameters.text || "") && move({ text }), 250);
    return () => clearTimeout(timer);
  }, [text]);
  const offset = Number(asked.offset);
  const order = (column) => move({ sort: column, descending: parameters.sort === column && asked.descending === "true" ? "false" : "true" });
  return (
    <main data-testid="episodes">
      <Problem text={problem} />
      <div class="filters card">
        <input type="search" placeholder="episode, task or reason" value={text} onInput={(e) => setText(e.currentTarget.value)} data-testid="search" />
        {FACETS.map((name) => (
          <select key={name} value={parameters[name] || ""} onChange={(e) => move({ [name]: e.currentTarget.value })} data-testid={`filter-${name}`}>
            <option value="">any {name}</option>
            {data && Object.entries(data.facets[name]).map(([value, n]) => <option key={value} value={value}>{value} ({count(n)})</option>)}
          </select>
        ))}
        {[["min_score", "score from"], ["max_score", "score to"], ["min_turns", "turns from"], ["step", "learner step"]].map(([name, label]) => (
          <input key={name} type="number" step="any" placeholder={label} value={parameters[name] || ""} onChange={(e) => move({ [name]: e.currentTarget.value })} data-testid={`filter-${name}`} />
        ))}
        <a class="button" href="#/episodes">clear</a>
        <span class="pager">
          <span class="dim" data-testid="total">{data ? `${data.total.toLocaleString("en")} of ${data.of.toLocaleString("en")} episodes` : "…"}{data && data.unread_files ? `, ${data.unread_files} files still to be read` : ""}</span>
          <button disabled={offset === 0} onClick={() => move({ offset: String(Math.max(0, offset - PAGE)) })} data-testid="previous">‹ previous</button>
          <button disabled={!data || offset + PAGE >= data.total} onClick={() => move({ offset: String(offset + PAGE) })} data-testid="next">next ›</button>
        </span>
      </div>
      <div class="card scroll">
        <table class="rows" data-testid="rows">
          <thead>
            <tr>{COLUMNS.map(([key, name]) => <th key={key} onClick={() => order(key)} class={parameters.sort === key ? "on" : ""}>{name}{parameters.sort === key ? (asked.descending === "true" ? " ↓" : " ↑") : ""}</th>)}</tr>
          </thead>
          <tbody>{data && data.rows.map((row) => <Row key={row.episode} row={row} />)}</tbody>
        </table>
      </div>
    </main>
  );
}

function Row({ row }) {
  const versions = row.oldest === null ? "–" : row.oldest === row.newest ? row.newest : `${row.oldest}–${row.newest}`;
  const link = `#/episode/${encodeURIComponent(row.episode)}`;
  return (
    <tr onClick={() => (location.hash = link)}>
      <td><a href={link} onClick={(e) => e.stopPropagation()}>{row.episode}</a></td><td class="dim">{row.task}</td><td>{row.stage}</td><td class="dim">{row.purpose}</td>
      <td>{row.state === "running" ? <Badge kind="live">{row.state}</Badge> : <span class="dim">{row.state}</span>}</td>
      <td>{row.dropped ? <Badge kind="bad" title={row.dropped}>dropped</Badge> : row.outcome ? <Badge kind={outcomeKind(row.outcome)}>{row.outcome}</Badge> : ""}</td>
      <td>{row.score === null ? "" : <Meter share={row.score} text={score(row.score)} />}</td>
      <td class={row.advantage > 0 ? "plus" : row.advantage < 0 ? "minus" : "dim"}>{row.advantage === null ? "" : signed(row.advantage)}</td>
      <td>{row.turns}</td><td>{row.tokens === null ? "" : count(row.tokens)}</td><td>{row.seconds === null ? "" : seconds(row.seconds)}</td><td>{versions}</td><td>{row.step}</td>
    </tr>
  );
}
