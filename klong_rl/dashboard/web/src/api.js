// What the server answers, and how often it is asked again.
import { useEffect, useState } from "preact/hooks";

export async function ask(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(given).toString();
  const response = await fetch(`/api/${path}${query ? `?${query}` : ""}`);
  const type = response.headers.get("content-type") || "";
  const body = type.includes("json") ? await response.json() : { error: await response.text() };
  if (!response.ok) throw new Error(body.error || `${response.status} ${response.statusText}`);
  return body;
}

// The answer of `path`, asked again every `everyMs` (0: once) while this page is in front. Of two answers that are
// under way the one that was asked for last counts.
export function useAnswer(path, parameters, everyMs) {
  const key = path + JSON.stringify(parameters);
  const [state, setState] = useState({ key: "", data: null, problem: "" });
  useEffect(() => {
    let gone = false;
    let timer = 0;
    const next = async () => {
      try {
        const data = document.hidden ? null : await ask(path, parameters);
        if (!gone && data) setState({ key, data, problem: "" });
      } catch (error) {
        if (!gone) setState((old) => ({ key, data: old.key === key ? old.data : null, problem: error.message }));
      }
      if (!gone && everyMs) timer = setTimeout(next, everyMs);
    };
    next();
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [key, everyMs]);
  return state;
}
