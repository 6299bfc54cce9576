import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { useAnswer } from "./api.js";
import { Curves } from "./curves.jsx";
import { Episode } from "./episode.jsx";
import { Episodes } from "./episodes.jsx";
import { Fleet } from "./fleet.jsx";
import { Badge, Problem } from "./parts.jsx";

const TABS = [["", "Curves"], ["fleet", "Fleet"], ["episodes", "Episodes"]];

// #/episode/ID, #/episodes?stage=2: what stands before the question mark, and the parameters after it.
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/");
  return { view, id: rest.map(decodeURIComponent).join("/"), parameters: Object.fromEntries(new URLSearchParams(query || "")) };
}

function App() {
  const [where, setWhere] = useState(place);
  useEffect(() => {
    const moved = () => setWhere(place());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const run = useAnswer("run", {}, 3000);
  const about = run.data;
  useEffect(() => {
    if (about) document.title = `${about.name} · klong_rl`;
  }, [about && about.name]);
  const tab = where.view === "episode" ? "episodes" : where.view;
  return (
    <>
      <header>
        <a class="brand" href="#/"><img src="/static/icon.svg" alt="" /> klong_rl</a>
        <b class="run" data-testid="run">{about ? about.name : "…"}</b>
        {about && about.model && <span class="dim" data-testid="model">{about.model}</span>}
        {about && <Badge kind={about.up ? "good" : ""}>{about.up ? about.phase || "up" : about.summary ? "finished" : "down"}</Badge>}
        <nav>{TABS.map(([view, name]) => <a key={view} class={tab === view ? "on" : ""} href={`#/${view}`}>{name}</a>)}</nav>
      </header>
      <Problem text={run.problem} />
      {where.view === "" && <Curves about={about} />}
      {where.view === "fleet" && <Fleet about={about} />}
      {where.view === "episodes" && <Episodes parameters={where.parameters} />}
      {where.view === "episode" && <Episode key={where.id} id={where.id} turn={Number(where.parameters.turn || 0)} />}
    </>
  );
}

render(<App />, document.getElementById("app"));
