// The search box over the rollouts inside this file: all words and quoted phrases must occur. The box needs this script, so it
// is hidden without; a browser's own search finds the texts too.
(() => {
  const form = document.getElementById("search");
  const list = document.getElementById("found");
  if (!form || !list) return;
  const [field, order] = form.elements;
  const said = form.querySelector("output");
  const items = [...list.children];
  const texts = new Map();
  const marks = typeof Highlight === "function" && CSS.highlights ? new Highlight() : null;
  if (marks) CSS.highlights.set("match", marks);
  const MOST_MARKS = 400;

  const termsOf = (query) => [...query.matchAll(/["“]([^"“”]*)["”]|(\S+)/g)].map((m) => (m[1] ?? m[2]).trim().toLowerCase()).filter(Boolean);
  const textOf = (item) => {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  };

  /** Marks the terms in the rollouts that are open. */
  function mark() {
    if (!marks) return;
    marks.clear();
    const terms = termsOf(field.value);
    if (!terms.length) return;
    for (const item of items) {
      if (item.hidden || !item.open) continue;
      const walker = document.createTreeWalker(item, NodeFilter.SHOW_TEXT);
      for (let node = walker.nextNode(); node && marks.size < MOST_MARKS; node = walker.nextNode()) {
        const text = node.data.toLowerCase();
        if (text.length !== node.data.length) continue; // a letter that has another length in lower case
        for (const term of terms) {
          for (let at = text.indexOf(term); at >= 0 && marks.size < MOST_MARKS; at = text.indexOf(term, at + term.length)) {
            marks.add(new StaticRange({ startContainer: node, startOffset: at, endContainer: node, endOffset: at + term.length }));
          }
        }
      }
    }
  }

  function search() {
    const terms = termsOf(field.value);
    let count = 0;
    for (const item of items) {
      item.hidden = !terms.every((term) => textOf(item).includes(term));
      count += !item.hidden;
    }
    said.textContent = terms.length ? `${count} of ${items.length}` : `${items.length} rollouts`;
    mark();
  }

  const keys = {
    newest: (item) => -item.dataset.step,
    oldest: (item) => +item.dataset.step,
    best: (item) => -item.dataset.score,
    worst: (item) => +item.dataset.score,
    longest: (item) => -item.dataset.words,
  };
  const sort = () => list.append(...items.sort((a, b) => keys[order.value](a) - keys[order.value](b)));

  let waiting = 0;
  field.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  order.addEventListener("change", sort);
  form.addEventListener("submit", (event) => event.preventDefault());
  list.addEventListener("toggle", mark, true);
  form.hidden = false;
  search();
})();
