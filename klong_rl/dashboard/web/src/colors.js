// Token colours are classes of the style sheet: each token has one of a few, whatever its value.
const SURPRISE = [0.05, 0.2, 0.7, 1.5, 3, 6]; // nats
const GAP = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5]; // nats
const ADVANTAGE = [0.02, 0.25, 0.75];
const VERSIONS = 8;

const bucket = (bounds, value) => bounds.filter((bound) => value >= bound).length;

export const MODES = [
  { id: "logprob", name: "log-prob", hint: "how unlikely the sampler found each token" },
  { id: "version", name: "policy version", hint: "which weights sampled each token" },
  { id: "gap", name: "log-prob gap", hint: "|learner − sampler| in the training forward pass" },
  { id: "mask", name: "mask", hint: "what is a training target" },
  { id: "advantage", name: "advantage", hint: "the advantage that the token's window was trained with" },
];

export function tokenClass(mode, token) {
  if (mode === "version") return `v${token.version % VERSIONS}`;
  if (mode === "logprob") return `s${bucket(SURPRISE, -token.logprob)}`;
  if (mode === "gap") return token.gap === null ? "none" : `s${bucket(GAP, Math.abs(token.gap))}`;
  if (mode === "mask") return token.trained ? "target" : token.masked ? "masked" : "none";
  if (token.advantage === null) return "none";
  const size = bucket(ADVANTAGE, Math.abs(token.advantage));
  return size === 0 ? "zero" : token.advantage > 0 ? `up${size}` : `down${size}`;
}

export function legend(mode, turns) {
  if (mode === "version") {
    const seen = [...new Set([...turns.oldest, ...turns.newest].filter((v) => v !== null))].sort((a, b) => a - b);
    const shown = seen.length > 12 ? [...seen.slice(0, 6), ...seen.slice(-6)] : seen;
    return shown.map((version) => [`v${version % VERSIONS}`, `v${version}`]);
  }
  if (mode === "logprob") return [["s0", "certain"], ...SURPRISE.map((low, i) => [`s${i + 1}`, `< −${low}`])];
  if (mode === "gap") return [["none", "not kept"], ["s0", "none"], ...GAP.map((low, i) => [`s${i + 1}`, `> ${low}`])];
  if (mode === "mask") return [["target", "target"], ["masked", "masked"], ["none", "not trained"]];
  return [["down3", "−"], ["down2", ""], ["down1", ""], ["zero", "0"], ["up1", ""], ["up2", ""], ["up3", "+"], ["none", "none"]];
}
