"""The list of rollouts: filters, search, one page of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from megatron_lwz.report.axes import short
from megatron_lwz.report.text import clip, html
from megatron_lwz.ui.filters import COLUMNS, ENDS, FORMS, KINDS, LANGUAGES, PAGE, SORTS, STATES, Filters
from megatron_lwz.ui.pages.layout import field, note, select
from megatron_lwz.ui.pages.layout import page as whole_page
from megatron_lwz.ui.run import Run
from megatron_lwz.ui.search import snippet

_HEAD = 110
_MOST_COLUMNS = 20


def page(run: Run, filters: Filters) -> str:
    """Returns the list. Raises DataError for a damaged journal or notes that cannot be read."""
    index = run.index()
    crumbs = [("Runs", "/"), (run.title, f"/runs/{run.name}")]
    if index is None:
        body = f'<h1>Rollouts</h1><p class="alarm">{html(run.trouble or "This run has no journal, so no rollouts to read.")}</p>'
        return whole_page("Rollouts", body, crumbs=crumbs, kind="list")
    notes = run.notes.all()
    flagged = {key for key, kept in notes.items() if kept.flag}
    components = index.components()[:_MOST_COLUMNS]
    source, values = filters.query(index, flagged)
    order, more = filters.order()
    with index.reading() as db:
        count, best = db.execute(f"SELECT count(*), count(DISTINCT r.group_id) {source}", values).fetchone()
        query = f"SELECT {COLUMNS} {source} ORDER BY {order} LIMIT {PAGE} OFFSET {filters.at}"
        cursor = db.execute(query, [*values, *more])
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        scores = _scores(db, rows)
        texts = _texts(db, rows) if filters.q else {}
    done, total = index.counts()
    parts = [
        "<h1>Rollouts</h1>",
        _form(run, filters, components),
        f'<p class="note" role="status">{count:,} rollouts of {best:,} prompt groups{_indexing(done, total)}</p>',
        _table(run, filters, rows, components, scores, texts, flagged)
        if rows
        else note("No rollout fits these filters."),
        _paging(run, filters, count),
    ]
    attributes = f'data-live="/runs/{html(run.name)}/events" data-run="{html(run.name)}"'
    return whole_page(
        "Rollouts", "".join(parts), crumbs=crumbs, kind="list", scripts=("list.js",), attributes=attributes
    )


def _indexing(done: int, total: int) -> str:
    return f" · {done:,} of {total:,} indexed so far, reload to see more" if done < total else ""


def _form(run: Run, filters: Filters, components: Sequence[str]) -> str:
    scores = {"": "any", **{name: name for name in components}}
    sorts = SORTS | ({"best": "best score first", "worst": "worst score first"} if components else {})
    changed = "open" if filters.address(q="", kind="training", sort="newest", at=0) else ""
    numbers = field("first", "from step", filters.first, numeric=True) + field(
        "last", "to step", filters.last, numeric=True
    )
    fields = (
        select("state", "State", STATES, filters.state)
        + select("end", "Ended", ENDS, filters.end)
        + select("form", "Form", FORMS, filters.form)
        + select("language", "Prompt in", LANGUAGES, filters.language)
        + numbers
        + select("score", "Score", scores, filters.score)
        + field("least", "at least", filters.least, numeric=True)
        + field("most", "at most", filters.most, numeric=True)
        + select("flag", "Flag", {"": "any", "1": "flagged"}, filters.flag)
        + field("prompt", "Prompt id", filters.prompt)
    )
    search = field(
        "q",
        "Search prompts and texts",
        filters.q,
        extra='type="search" id="search" placeholder="words, “a phrase”, 中文"',
    )
    return (
        f'<form class="filters" action="/runs/{html(run.name)}/rollouts" method="get" role="search"><div class="row main">{search}'
        f"{select('kind', 'From', KINDS, filters.kind)}{select('sort', 'Order', sorts, filters.sort)}<button>Show</button></div>"
        f'<details {changed}><summary>Filters</summary><div class="row">{fields}</div></details></form>'
    )


def _table(
    run: Run,
    filters: Filters,
    rows: Sequence[Mapping[str, Any]],
    components: Sequence[str],
    scores: Mapping[tuple[int, int], Mapping[str, tuple[float | None, bool]]],
    texts: Mapping[tuple[int, int], str],
    flagged: set[tuple[int, int]],
) -> str:
    heads = "".join(f"<th><bdi>{html(name)}</bdi></th>" for name in components)
    head = f"<tr><th>prompt</th><th>step</th><th>asked</th><th>wrote</th><th>tokens</th>{heads}<th>marks</th></tr>"
    lines = []
    back = urlencode({"list": filters.address()}) if filters.address() else ""
    for row in rows:
        key = (row["group_id"], row["rollout"])
        address = f"/runs/{run.name}/rollouts/{key[0]}/{key[1]}" + (f"?{back}" if back else "")
        found = scores.get(key, {})
        cells = "".join(f"<td>{_score(found.get(name))}</td>" for name in components)
        asked = f"{row['lower']:,}–{row['upper']:,}" if row["lower"] is not None else "–"
        title = f'<a href="{html(address)}"><bdi>{html(clip(row["head"], _HEAD)) or "(empty prompt)"}</bdi></a>'
        lines.append(
            f"<tr><td>{title}<small> #{key[0]}.{key[1]}</small>{_snippet(texts.get(key), filters.q)}</td><td>{row['step']}</td>"
            f"<td>{asked}</td><td>{row['words']:,}</td><td>{row['tokens']:,}</td>{cells}<td>{marks(row, key in flagged)}</td></tr>"
        )
    return f'<div class="wide" tabindex="0"><table class="rollouts"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def marks(row: Mapping[str, Any], flagged: bool) -> str:
    """Returns the badges of a rollout: what is unusual about it."""
    found = [("flag", "flag")] if flagged else []
    if row["reason"] != "stop":
        found.append(
            ("warn", {"length": "cut", "guard": "guard", "abort": "aborted"}.get(row["reason"], row["reason"]))
        )
    if row["fault"]:
        found.append(("warn", row["fault"]))
    if (row["repetition"] or 0.0) > 0.2:
        found.append(("warn", f"repeats {row['repetition']:.0%}"))
    if row["dropped"]:
        found.append(("soft", f"dropped: {row['dropped']}"))
    elif not row["trained"] and row["kind"] == "training":
        found.append(("soft", "waiting"))
    return " ".join(f'<span class="badge {kind}">{html(text)}</span>' for kind, text in found)


def _score(found: tuple[float | None, bool] | None) -> str:
    if found is None:
        return "–"
    value, valid = found
    return short(value) if valid and value is not None else '<span class="soft">masked</span>'


def _snippet(text: str | None, query: str) -> str:
    parts = snippet(text, query) if text else None
    if parts is None:
        return ""
    before, match, after = (html(" ".join(part.split(" "))) for part in parts)
    return f'<div class="snippet" dir="auto">{before}<mark>{match}</mark>{after}</div>'


def _paging(run: Run, filters: Filters, count: int) -> str:
    here, last = filters.at // PAGE, max(0, count - 1) // PAGE
    ways = {
        "First": ("first", 0, here > 1),
        "Previous": ("prev", filters.at - PAGE, here > 0),
        "Next": ("next", filters.at + PAGE, here < last),
        "Last": ("last", last * PAGE, here < last - 1),
    }
    links = "".join(
        f'<a rel="{rel}" href="/runs/{html(run.name)}/rollouts?{html(filters.address(at=max(0, at)))}">{name}</a>'
        for name, (rel, at, there) in ways.items()
        if there
    )
    rows = f"{filters.at + 1:,} to {min(count, filters.at + PAGE):,} of {count:,}" if filters.at < count else ""
    pages = f" · page {here + 1:,} of {last + 1:,}" if rows and last else ""
    return f'<nav class="paging" aria-label="Pages"><span>{rows}{pages}</span>{links}</nav>'


def _scores(
    db: Any, rows: Sequence[Mapping[str, Any]]
) -> Mapping[tuple[int, int], dict[str, tuple[float | None, bool]]]:
    found: defaultdict[tuple[int, int], dict[str, tuple[float | None, bool]]] = defaultdict(dict)
    query = "SELECT component, value, valid FROM journal.scores WHERE group_id = ? AND rollout = ?"
    for row in rows:
        key = (row["group_id"], row["rollout"])
        for component, value, valid in db.execute(query, key):
            found[key][component] = (value, bool(valid))
    return found


def _texts(db: Any, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], str]:
    query = "SELECT text FROM journal.finished WHERE group_id = ? AND rollout = ?"
    keys = [(row["group_id"], row["rollout"]) for row in rows]
    return {key: db.execute(query, key).fetchone()[0] for key in keys}
