// Lists: rows by keyboard, and a word when the run has finished more rollouts.

import { onKeys, onNews, say } from "./base.js";

const rows = [...document.querySelectorAll("table.rollouts tbody tr")];
let at = -1;

function go(way) {
  if (!rows.length) return false;
  const now = rows.findIndex((row) => row.contains(document.activeElement));
  at = Math.min(Math.max((now >= 0 ? now : at) + way, 0), rows.length - 1);
  rows[at].querySelector("a").focus();
  rows[at].scrollIntoView({ block: "nearest" });
}

function page(rel) {
  const link = document.querySelector(`a[rel=${rel}]`);
  if (!link) return false;
  location.assign(link.href);
}

onKeys({
  j: () => go(1),
  k: () => go(-1),
  n: () => page("next"),
  p: () => page("prev"),
  u: () => (document.body.dataset.list ? location.assign(document.body.dataset.list) : false),
  "/": () => document.getElementById("search")?.focus(),
});

const note = document.querySelector("p.note[role=status]");
if (document.body.dataset.live && note) {
  onNews(() => {
    if (document.getElementById("fresh")) return;
    const link = document.createElement("a");
    link.id = "fresh";
    link.href = location.href;
    link.textContent = "The run goes on: show what is new";
    note.append(" · ", link);
    say(link.textContent);
  });
}
