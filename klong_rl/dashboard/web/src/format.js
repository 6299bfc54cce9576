// Numbers for people.
export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export function count(value) {
  if (!isNumber(value)) return "–";
  if (Math.abs(value) < 10000) return Number.isInteger(value) ? String(value) : value.toFixed(1);
  return Math.abs(value) < 1e6 ? `${(value / 1e3).toFixed(1)}k` : `${(value / 1e6).toFixed(2)}M`;
}

export function number(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
  return size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

export function seconds(value) {
  if (!isNumber(value)) return "–";
  if (value < 60) return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} s`;
  const whole = Math.round(value);
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${String(whole % 60).padStart(2, "0")}s`;
  return `${Math.floor(whole / 3600)}h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")}m`;
}

export const score = (value) => (isNumber(value) ? value.toFixed(3) : "–");
export const percent = (value) => (isNumber(value) ? `${(100 * value).toFixed(0)}%` : "–");
export const megabytes = (value) => (isNumber(value) ? `${(value / 1e6).toFixed(0)} MB` : "–");
export const signed = (value) => (isNumber(value) ? `${value > 0 ? "+" : ""}${value.toFixed(3)}` : "–");
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
