// What the bands show: from the values that the server gives, spans of the text with a level, marks to go to, words to say.

/** Band → how its value is read, from which levels on it is coloured, and how the levels are named. */
const OF_TOKENS = {
  logprob: { value: (v) => -v / 100, from: [0.5, 0.2, 0.05, 0.01].map((p) => -Math.log(p)), names: ["below 0.5", "below 0.2", "below 0.05", "below 0.01"] },
  entropy: { value: (v) => v / 100, from: [0.5, 1, 2, 3], names: ["from 0.5 nats", "from 1", "from 2", "from 3"] },
  mismatch: { value: (v) => Math.abs(v) / 1000, from: [0.02, 0.1, 0.5, 1], names: ["from 0.02 nats apart", "from 0.1", "from 0.5", "from 1"] },
};
export const LEVELS = 4;
export const MINUS = 5; // what counts against a rollout: another hue

function level({ value, from }, given) {
  if (given === null) return 0;
  const found = value(given);
  let reached = 0;
  while (reached < LEVELS && found >= from[reached]) reached++;
  return reached;
}

/** Returns [spans, marks]: [start, end, level] in ascending order, and the places that n and p go to. */
export function build(band, bands, length) {
  const spans = [];
  const marks = [];
  const add = (start, end, level) => {
    const last = spans.at(-1);
    if (last && last[1] === start && last[2] === level) last[1] = end;
    else if (level && end > start) spans.push([start, end, level]);
  };
  if (OF_TOKENS[band] && bands.ends && bands[band]) {
    bands[band].forEach((value, token) => {
      const start = token ? bands.ends[token - 1] : 0;
      const reached = level(OF_TOKENS[band], value);
      add(start, bands.ends[token], reached);
      if (reached === LEVELS) marks.push(start);
    });
  } else if (band === "version" && bands.ends) {
    bands.versions.forEach(([first], place) => {
      const next = bands.versions[place + 1]?.[0] ?? bands.ends.length;
      const start = first ? bands.ends[first - 1] : 0;
      if (bands.versions.length > 1) add(start, bands.ends[next - 1], (place % LEVELS) + 1);
      marks.push(start);
    });
  } else if (band === "advantage" && bands.advantage) {
    add(0, length, bands.advantage > 0 ? 2 : MINUS);
  } else if (band === "repetition") {
    const found = bands.twins.flatMap(([start, end, first, stop]) => [[start, end, 3], [first, stop, 1]]);
    return [found.sort((a, b) => a[0] - b[0] || b[2] - a[2]), bands.twins.map(([start]) => start)];
  }
  return [spans, marks];
}

/** Returns the legend: a text alone, or the [level, name] of its colours. */
export function legendOf(band, bands) {
  if (band === "none") return "";
  if (bands.missing[band]) return `No data: ${bands.missing[band]}.`;
  if (band === "advantage") {
    if (!bands.advantage) return "The advantage is 0: training takes no direction from this rollout.";
    const way = bands.advantage > 0 ? "more" : "less";
    return `GRPO weighs every token of a rollout alike: ${signed(bands.advantage, 3)}, so training makes all of them ${way} likely.`;
  }
  if (band === "version" && bands.versions.length < 2) return `All tokens were written by the weights of ${bands.versions[0]?.[1] ?? "no step"}.`;
  if (band === "repetition") return bands.twins.length ? [[3, "stands earlier in the text"], [1, "its first place"]] : "No passage stands twice.";
  if (band === "version") return bands.versions.slice(0, 12).map(([, name], place) => [(place % LEVELS) + 1, name]);
  return OF_TOKENS[band].names.map((name, place) => [place + 1, name]);
}

/** Returns all that is known of one token. `version`: the weights that wrote it. */
export function wordsOfToken(bands, token, version) {
  const logprob = bands.logprob[token] / 100;
  const said = [`probability ${Math.exp(logprob).toPrecision(2)}`, `log-prob ${logprob.toFixed(2)}`];
  const entropy = bands.entropy?.[token] ?? null, apart = bands.mismatch?.[token] ?? null;
  if (entropy !== null) said.push(`entropy ${(entropy / 100).toFixed(2)}`);
  if (apart !== null) said.push(`trainer ${signed(apart / 1000)} nats`);
  return [...said, `token ${token + 1}`, `weights of ${version}`].join(" · ");
}

function signed(value, digits = 2) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toPrecision(digits)}`;
}
