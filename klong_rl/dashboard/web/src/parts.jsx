// Small pieces that several views use.
import { percent } from "./format.js";

export const Card = ({ title, note, children, wide }) => (
  <section class={`card ${wide ? "wide" : ""}`}>
    {title && <h2>{title} {note && <span class="dim">{note}</span>}</h2>}
    {children}
  </section>
);

export const Tile = ({ name, value, note }) => (
  <div class="tile"><span class="dim">{name}</span><b>{value}</b>{note && <small class="dim">{note}</small>}</div>
);

export const Badge = ({ kind = "", title, children }) => <span class={`badge ${kind}`} title={title}>{children}</span>;

export const Problem = ({ text }) => (text ? <p class="problem" role="alert">{text}</p> : null);

export const Meter = ({ share, text }) => (
  <span class="meter" title={text || percent(share)}>
    <i class={share > 0.9 ? "full" : ""} style={{ width: `${100 * Math.max(0, Math.min(1, share || 0))}%` }} />
    <span>{text || percent(share)}</span>
  </span>
);

// One bar of several parts, and what each of them is.
export function Split({ parts, format }) {
  const total = parts.reduce((sum, part) => sum + (part.value || 0), 0);
  if (!total) return <p class="dim">nothing yet</p>;
  return (
    <div>
      <div class="split">
        {parts.map((part) => part.value > 0 && (
          <i key={part.name} class={`k${part.color}`} style={{ flexGrow: part.value / total }} title={`${part.name}: ${format(part.value)}`} />
        ))}
      </div>
      <div class="keys">
        {parts.map((part) => <span key={part.name}><i class={`key k${part.color}`} />{part.name} <b>{format(part.value)}</b></span>)}
      </div>
    </div>
  );
}

export const outcomeKind = (outcome) =>
  ({ submitted: "good", timeout: "warn", turn_limit: "warn", context_limit: "warn", broken: "bad" })[outcome] || "";
