"""The report's section on who pulls at the policy, from rows as a run writes them."""

from megatron_lwz.report.curves import composition_charts, judge_table


def row(step, **metrics):
    return {"step": step, **metrics}


ROWS = [
    row(
        step,
        **{
            "gradient/length": 0.75,
            "gradient/rubric": 0.25,
            "gradient/length/0-100": 0.5,
            "gradient/length/100-more": 0.25,
            "gradient_length/0-100": 0.6,
            "gradient_length/100-more": 0.4,
            "rollout/masked_groups/length": 0.0,
            "rollout/masked_groups/rubric": 2.0,
            "rollout/violators": 0.125,
            "judge/total_asked": 8.0 * step,
            "judge/total_failed/timeout": 3.0,
            "judge/total_failed/refused": 0.0,
        },
    )
    for step in (1, 2, 3)
]


def test_shares_masks_and_the_judges_counts_are_shown():
    page = composition_charts(ROWS)
    for title in ("Gradient by component", "Gradient by length", "Gradient of length", "Groups without a score"):
        assert f"<figcaption>{title}" in page
    assert "Gradient of rubric" not in page, "it has no shares by length"
    groups = page.split("Groups without a score")[1].split("</figure>")[0]
    assert "rubric" in groups and ">length<" not in groups, "a component that always had scores takes no room"
    table = judge_table(ROWS)
    assert "<td>asked</td><td>24</td>" in table and "<td>failed/timeout</td><td>3</td>" in table
    assert "refused" not in table


def test_runs_without_them_show_nothing():
    assert composition_charts([row(1, loss=0.5)]) == "" and judge_table([row(1, loss=0.5)]) == ""
