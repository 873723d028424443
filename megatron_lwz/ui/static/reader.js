// The reader. The text stays one text node per paragraph: bands are drawn by the CSS Custom Highlight API, and only for
// chunks that are near the screen.

import { MINUS, build as spansOf, legendOf, wordsOfToken } from "./bands.js";
import { onKeys, say } from "./base.js";
import { Minimap } from "./minimap.js";

const data = document.body.dataset;
const query = new URLSearchParams(location.search);
const chunks = [...document.querySelectorAll(".think .chunk, .answer .chunk, .outside .chunk")];
const paragraphs = chunks.flatMap((chunk) => [...chunk.querySelectorAll("p[data-o]")]);
const starts = paragraphs.map((paragraph) => Number(paragraph.dataset.o));
const sizes = paragraphs.map((paragraph) => paragraph.firstChild?.length ?? 0);
const length = starts.length ? starts.at(-1) + sizes.at(-1) : 0;
const tip = document.getElementById("tip");
const legend = document.getElementById("legend");
const radios = [...document.querySelectorAll("input[name=band]")];
const able = typeof Highlight === "function" && CSS.highlights !== undefined;

let bands = null; // as the server gives them, with `ends` summed up
let band = "none";
let spans = []; // [start, end, level], ascending: what is drawn
let spanStarts = [];
let marks = []; // places that n and p go to
let current = -1; // paragraph
let mark = -1; // index into marks

const highlights = {};
if (able) {
  for (const name of [...Array(MINUS).keys()].map((level) => `band-${level + 1}`).concat("twin", "mark", "code")) {
    CSS.highlights.set(name, (highlights[name] = new Highlight()));
  }
}

/** The last index whose value is at most `value`. */
function before(values, value) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= value) low = middle + 1; else high = middle;
  }
  return low - 1;
}

/** The ranges of text[start:end] within paragraphs `first` to `last`. */
function ranges(start, end, first = 0, last = paragraphs.length - 1) {
  const found = [];
  for (let place = Math.max(first, before(starts, start)); place <= last && starts[place] < end; place++) {
    const low = Math.max(0, start - starts[place]), high = Math.min(sizes[place], end - starts[place]);
    if (low >= high) continue;
    const node = paragraphs[place].firstChild;
    found.push(new StaticRange({ startContainer: node, startOffset: low, endContainer: node, endOffset: high }));
  }
  return found;
}

// --- Bands ---------------------------------------------------------------------------------------------------------

async function loadBands() {
  if (bands) return;
  const answer = await fetch(data.bands);
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  bands = await answer.json();
  if (bands.ends) {
    let sum = 0;
    bands.ends = bands.ends.map((size) => (sum += size));
  }
}

function build() {
  [spans, marks] = band === "none" ? [[], []] : spansOf(band, bands, length);
  spanStarts = spans.map(([start]) => start);
  mark = -1;
}

const drawn = new Map(); // chunk → ranges by highlight name

function draw(chunk) {
  if (drawn.has(chunk) || !able) return;
  const inside = chunk.querySelectorAll("p[data-o]");
  if (!inside.length) return;
  const first = before(starts, Number(inside[0].dataset.o)), last = first + inside.length - 1;
  const low = starts[first], high = starts[last] + sizes[last];
  const made = [];
  const from = band === "repetition" ? 0 : Math.max(0, before(spanStarts, low)); // repeated passages may overlap
  for (let place = from; place < spans.length; place++) {
    const [start, end, level] = spans[place];
    if (start >= high) break;
    if (end > low) for (const range of ranges(Math.max(start, low), Math.min(end, high), first, last)) made.push([`band-${level}`, range]);
  }
  inside.forEach((paragraph, place) => {
    for (const match of paragraph.textContent.matchAll(/⟦U\+[0-9A-F]+⟧/g)) {
      const start = starts[first + place] + match.index;
      for (const range of ranges(start, start + match[0].length, first, last)) made.push(["code", range]);
    }
  });
  for (const [name, range] of made) highlights[name].add(range);
  drawn.set(chunk, made);
}

function erase(chunk) {
  for (const [name, range] of drawn.get(chunk) ?? []) highlights[name].delete(range);
  drawn.delete(chunk);
}

const near = new Set();
const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) { near.add(target); draw(target); } else { near.delete(target); erase(target); }
    }
  },
  { rootMargin: "900px 0px" },
);

function describe() {
  if (!able) { legend.textContent = "This browser cannot draw bands: it lacks the CSS Custom Highlight API."; return; }
  const found = legendOf(band, bands);
  if (typeof found === "string") { legend.textContent = found; return; }
  const parts = found.map(([level, text]) => {
    const item = document.createElement("span");
    item.className = `swatch b${level}`;
    item.textContent = text;
    return item;
  });
  const count = document.createElement("span");
  count.textContent = `${marks.length} marks: n and p`;
  legend.replaceChildren(...parts, count);
}

export async function choose(name) {
  try {
    if (name !== "none") await loadBands();
  } catch (error) {
    legend.textContent = `The bands could not be loaded: ${error.message}`;
    return;
  }
  band = name;
  build();
  for (const chunk of [...drawn.keys()]) erase(chunk);
  for (const chunk of near) draw(chunk);
  tip.hidden = true;
  describe();
  minimap.draw(spans);
  document.body.dataset.band = band;
  for (const radio of radios) radio.checked = radio.value === band;
  if (band === "none") query.delete("band"); else query.set("band", band);
  keepAddress();
}

// --- Moving --------------------------------------------------------------------------------------------------------

function keepAddress() {
  const text = query.toString();
  const place = current >= 0 ? `#o${starts[current]}` : "";
  history.replaceState(null, "", location.pathname + (text ? `?${text}` : "") + place);
}

function reveal(place, block = "center") {
  const paragraph = paragraphs[place];
  const closed = paragraph.closest("details:not([open])");
  if (closed) closed.open = true;
  paragraph.scrollIntoView({ block });
}

function select(place) {
  paragraphs[current]?.classList.remove("at");
  current = Math.min(Math.max(place, 0), paragraphs.length - 1);
  paragraphs[current].classList.add("at");
  reveal(current);
  keepAddress();
}

/** The paragraph at the top of the screen. */
function visible(y = 90) {
  const paper = document.querySelector(".paper").getBoundingClientRect();
  for (let down = y; down < innerHeight; down += 24) {
    const found = document.elementFromPoint(paper.left + Math.min(60, paper.width / 2), down)?.closest("p[data-o]");
    if (found) { const place = paragraphs.indexOf(found); if (place >= 0) return place; }
  }
  return -1;
}

function step(way) {
  if (!paragraphs.length) return false;
  const on = current >= 0 && paragraphs[current].getBoundingClientRect();
  const inside = on && on.bottom > 0 && on.top < innerHeight;
  let next = (inside ? current : visible() - way) + way;
  while (paragraphs[next]?.closest("details:not([open])")) next += way;
  if (paragraphs[next]) select(next);
}

function jump(start, end) {
  const place = before(starts, start);
  if (place < 0) return;
  select(place);
  if (!able) return;
  highlights.mark.clear();
  for (const range of ranges(start, end)) highlights.mark.add(range);
}

function nextMark(way) {
  if (!marks.length) { say("no marks in this band"); return; }
  const here = current >= 0 ? starts[current] : 0;
  if (mark < 0 || mark >= marks.length) mark = Math.max(0, before(marks, here)) - (way > 0 ? 1 : 0);
  mark = (mark + way + marks.length) % marks.length;
  const place = marks[mark];
  const [start, end] = band === "repetition" ? bands.twins[mark] : spans.find(([start, end]) => start <= place && place < end) ?? [place, place + 1];
  jump(band === "version" ? place : start, band === "version" ? place + 1 : end);
  const text = wordsAt(place);
  say(`mark ${mark + 1} of ${marks.length}: ${text}`);
}

function twinAt(place) {
  return bands?.twins.find(([start, end]) => start <= place && place < end);
}

function toTwin() {
  const place = mark >= 0 && band === "repetition" ? marks[mark] : current >= 0 ? starts[current] : -1;
  const twin = twinAt(place) ?? bands?.twins.find(([start, end]) => current >= 0 && end > starts[current] && start < starts[current] + sizes[current]);
  if (!twin) { say("no repeated passage here"); return; }
  jump(twin[2], twin[3]);
}

// --- Values under the pointer --------------------------------------------------------------------------------------

function offsetAt(x, y) {
  const found = document.caretPositionFromPoint?.(x, y) ?? document.caretRangeFromPoint?.(x, y);
  const node = found?.offsetNode ?? found?.startContainer;
  const paragraph = node?.parentElement?.closest("p[data-o]");
  const place = paragraph ? paragraphs.indexOf(paragraph) : -1;
  return place < 0 ? -1 : starts[place] + (found.offset ?? found.startOffset);
}

function textOf(start, end) {
  let text = "";
  for (let place = before(starts, start); place < paragraphs.length && starts[place] < end; place++) {
    text += `${paragraphs[place].textContent.slice(Math.max(0, start - starts[place]), end - starts[place])} `;
  }
  return text.trim();
}

function wordsAt(place) {
  if (band === "repetition") {
    const twin = twinAt(place);
    if (!twin) return "";
    const text = textOf(twin[2], Math.min(twin[3], twin[2] + 240));
    return `Stands ${Math.round((100 * twin[2]) / length)} % into the text already: “${text}${twin[3] - twin[2] > 240 ? "…" : ""}” (t goes there)`;
  }
  if (!bands?.ends) return "";
  const token = before(bands.ends, place) + 1;
  if (token >= bands.ends.length) return "";
  const version = bands.versions[before(bands.versions.map(([first]) => first), token)]?.[1];
  return wordsOfToken(bands, token, version);
}

let pointer = null;
function hover() {
  const { x, y, target } = pointer;
  pointer = null;
  const place = band !== "none" && target.closest?.(".paper") ? offsetAt(x, y) : -1;
  const text = place >= 0 ? wordsAt(place) : "";
  tip.hidden = !text;
  if (able) highlights.twin.clear();
  if (!text) return;
  tip.textContent = text;
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 12))}px`;
  tip.style.top = `${y + tip.offsetHeight + 30 < innerHeight ? y + 20 : y - tip.offsetHeight - 14}px`;
  const twin = band === "repetition" && able ? twinAt(place) : null;
  if (twin) for (const range of [...ranges(twin[0], twin[1]), ...ranges(twin[2], twin[3])]) highlights.twin.add(range);
}

document.addEventListener("pointermove", (event) => {
  if (!pointer) requestAnimationFrame(hover);
  pointer = { x: event.clientX, y: event.clientY, target: event.target };
});

// --- Notes ---------------------------------------------------------------------------------------------------------

const flag = document.getElementById("flag");
const words = document.getElementById("note-text");

async function save() {
  const note = { flag: flag.getAttribute("aria-pressed") === "true", text: words.value };
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(note) };
  try {
    const answer = await fetch(data.note, options);
    say(answer.ok ? "saved" : ((await answer.json()).error?.message ?? `not saved: ${answer.status}`));
    document.getElementById("note").dataset.saved = answer.ok ? "yes" : "no";
  } catch (error) {
    say(`not saved: ${error.message}`);
  }
}

function toggleFlag() {
  flag.setAttribute("aria-pressed", flag.getAttribute("aria-pressed") === "true" ? "false" : "true");
  save();
}

flag.addEventListener("click", toggleFlag);
document.getElementById("note").addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
words.addEventListener("keydown", (event) => {
  if (event.key === "Escape") words.blur();
});

// --- Start ---------------------------------------------------------------------------------------------------------

const minimap = new Minimap(document.getElementById("minimap"), {
  length,
  sections: [...document.querySelectorAll(".think, .answer, .outside")].map((part) => {
    const inside = part.querySelectorAll("p[data-o]");
    return inside.length ? [Number(inside[0].dataset.o), part.classList[0]] : null;
  }).filter(Boolean),
  seen: () => {
    const first = visible(70);
    if (first < 0) return null;
    let last = first;
    while (last + 1 < paragraphs.length && paragraphs[last + 1].getBoundingClientRect().top < innerHeight) last++;
    return [starts[first], starts[last] + sizes[last]];
  },
  go: (place) => { const found = before(starts, place); if (found >= 0) reveal(found, "center"); },
});

function siblings() {
  const links = [...document.querySelectorAll(".siblings a:not(.button)")];
  return [links, links.findIndex((link) => link.hasAttribute("aria-current"))];
}

function sibling(way) {
  const [links, here] = siblings();
  const next = links[here + way];
  if (!next) { say("no further sibling"); return; }
  location.assign(next.href + location.search);
}

onKeys({
  j: () => step(1),
  k: () => step(-1),
  n: () => nextMark(1),
  p: () => nextMark(-1),
  t: toTwin,
  b: () => { choose(radios[(radios.findIndex((radio) => radio.checked) + 1) % radios.length].value); },
  g: () => scrollTo({ top: 0 }),
  a: () => document.getElementById("answer")?.scrollIntoView(),
  s: () => location.assign(data.siblings),
  d: () => location.assign(data.steps),
  "[": () => sibling(-1),
  "]": () => sibling(1),
  f: toggleFlag,
  m: () => words.focus(),
  u: () => location.assign(data.list + (query.has("list") ? `?${query.get("list")}` : "")),
});
for (const radio of radios) radio.addEventListener("change", () => choose(radio.value));
for (const link of document.querySelectorAll("a[data-to]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    if (link.dataset.end) jump(Number(link.dataset.to), Number(link.dataset.end)); else select(before(starts, Number(link.dataset.to)));
  });
}
const narrow = matchMedia("(max-width: 860px)");
const about = document.querySelector(".about");
const fold = () => { about.open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
for (const chunk of chunks) observer.observe(chunk);
const deep = /^#o(\d+)$/.exec(location.hash);
if (deep && paragraphs.length) requestAnimationFrame(() => select(before(starts, Number(deep[1]))));
if (radios.some((radio) => radio.value === query.get("band"))) choose(query.get("band"));
