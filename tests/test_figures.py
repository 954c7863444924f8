"""Figures of tables: contents, names, tooltips, reproducible bytes, and missing data."""

import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from recorded import CELLS, SIZE, write_recorded_study

from hylo import stats
from hylo.analysis.positions import ppl_by_bin
from hylo.report import write_report
from hylo.report.figures.attribution import attribution_figure
from hylo.report.figures.forest import forest_figure
from hylo.report.figures.heatmap import retrieval_heatmap
from hylo.report.figures.improvement import improvement_figure
from hylo.report.figures.loss import loss_figure
from hylo.report.figures.multiples import TOGETHER
from hylo.report.figures.pareto import pareto_figure, pareto_front
from hylo.report.figures.positions import position_figure, ppl_by_position_figure
from hylo.report.figures.retrieval import retrieval_figure
from hylo.report.figures.style import WIDTH, fold, text_size
from hylo.report.render.files import save
from hylo.report.render.hover import svg
from hylo.runs.layout import EVAL
from hylo.runs.store import read_study

TABLE_FIGURES: dict[str, Callable[..., Figure]] = {
    "forest": forest_figure,
    "pareto": pareto_figure,
    "attribution": attribution_figure,
    "retrieval": retrieval_figure,
    "retrieval_heatmap": retrieval_heatmap,
}
LONG = "a_method_whose_name_is_longer_than_any_column_could_be_expected_to_be_{}"
LINES = ["32 windows", "95 % intervals"]
DEPTHS = 4


def _names(count: int, *, long: bool = False) -> list[str]:
    return [LONG.format(place) if long else f"cell{place}" for place in range(count)]


def contrasts(count: int = 3, *, long: bool = False, seeds: int = 3) -> pd.DataFrame:
    """One large effect, the others small, each published at 3 %."""
    effects = [25.0, *[0.02 * place for place in range(1, count)]]
    rows = [
        (name, "untuned", "", "ppl", effect, effect - 0.1, effect + 0.1, seeds, 0.01, 0.2, 3.0, "core")
        for name, effect in zip(_names(count, long=long), effects, strict=True)
    ]
    columns = "cell reference component measure effect low high seeds p_holm detectable published verdict"
    return pd.DataFrame(rows, columns=pd.Index(columns.split()))


def pareto(count: int = 4, *, long: bool = False, seeds: int = 3) -> pd.DataFrame:
    params, ppl = np.array([0, *10.0 ** np.arange(3, 2 + count)]), 30.0 - np.arange(count)
    ends = {"ppl": ppl, "ppl_low": ppl - 0.5, "ppl_high": ppl + 0.5}
    front = pareto_front(params, ppl)
    return pd.DataFrame(
        {"cell": _names(count, long=long), "trainable_params": params, **ends, "seeds": seeds, "front": front}
    )


def attribution(count: int = 3, *, long: bool = False, seeds: int = 3) -> pd.DataFrame:
    rows = [
        (name, comparison, 3.0 + place, 2.5 + place, 3.5 + place, seeds)
        for place, name in enumerate(_names(count, long=long))
        for comparison in ("cumulative", "leave-one-out", "Shapley")
    ]
    return pd.DataFrame(rows, columns=pd.Index(["component", "comparison", "effect", "low", "high", "seeds"]))


def retrieval(count: int = 2, *, long: bool = False, seeds: int = 3) -> pd.DataFrame:
    rows = [
        (name, facts, "facts", depth, place, 0.5, 0.4, 0.6, -1.5, -1.7, -1.3, seeds)
        for name in _names(count, long=long)
        for facts in (10, 20)
        for depth, place in enumerate(np.linspace(0, facts - 1, DEPTHS).round().astype(int))
    ]
    columns = "cell length unit depth place accuracy accuracy_low accuracy_high logprob logprob_low logprob_high seeds"
    return pd.DataFrame(rows, columns=pd.Index(columns.split()))


TABLES: dict[str, Callable[..., pd.DataFrame]] = {
    "forest": contrasts,
    "pareto": pareto,
    "attribution": attribution,
    "retrieval": retrieval,
    "retrieval_heatmap": retrieval,
}
MISSING = {
    "forest": ["effect", "low", "high", "p_holm", "detectable", "published"],
    "pareto": ["ppl", "ppl_low", "ppl_high"],
    "attribution": ["effect", "low", "high"],
    "retrieval": ["accuracy", "accuracy_low", "accuracy_high"],
    "retrieval_heatmap": ["accuracy", "accuracy_low", "accuracy_high"],
}


def _titles(figure: Figure) -> list[str]:
    """The tooltips, read from the SVG."""
    return re.findall(r'<g id="hover-\d+"><title>([^<]*)</title>', svg(figure))


def _caption(figure: Figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def _labels(figure: Figure) -> set[str]:
    """Labels of all visible axes."""
    return {label for axes in figure.get_axes() for label in (axes.get_xlabel(), axes.get_ylabel()) if label}


def _texts(figure: Figure) -> list[Any]:
    return [text for axes in figure.get_axes() for text in axes.texts if text.get_text()]


@pytest.mark.parametrize("name", sorted(TABLE_FIGURES))
def test_every_figure_has_a_table_here_and_is_the_same_twice(name: str, tmp_path: Path):
    written = [save(TABLE_FIGURES[name]("Title", LINES, TABLES[name]()), tmp_path / part, name) for part in "ab"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in written[0]] == [f"{name}.png", f"{name}.svg"]
    assert written[0][0].read_bytes().startswith(b"\x89PNG")
    assert b"<title>" in written[0][1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [f"{name}.png", f"{name}.svg"]


@pytest.mark.parametrize("name", sorted(TABLE_FIGURES))
def test_captions_say_the_seeds(name: str):
    for seeds in (1, 3):
        caption = _caption(TABLE_FIGURES[name]("Title", LINES, TABLES[name](seeds=seeds)))
        assert f"seeds per cell: {seeds}" in caption
        assert "95 % intervals" in caption
    mixed = TABLES[name]()
    mixed.loc[0, "seeds"] = 1
    assert "seeds per cell: 1 to 3" in _caption(TABLE_FIGURES[name]("Title", LINES, mixed))


@pytest.mark.parametrize("name", sorted(TABLE_FIGURES))
def test_missing_values_are_left_out(name: str):
    table = TABLES[name]()
    whole = len(_titles(TABLE_FIGURES[name]("Title", LINES, table)))
    table.loc[1, MISSING[name]] = np.nan
    figure = TABLE_FIGURES[name]("Title", LINES, table)
    shown = _titles(figure)
    assert not any("nan" in text for text in shown)
    assert "nan" not in " ".join(text.get_text() for text in _texts(figure))
    assert len(shown) < whole or name == "retrieval_heatmap"  # where the square stays, in white
    with pytest.raises(ValueError, match="no rows; draw it only where there are some"):
        TABLE_FIGURES[name]("Title", LINES, table.iloc[:0])


@pytest.mark.parametrize("name", sorted(TABLE_FIGURES))
def test_missing_columns_are_named(name: str):
    with pytest.raises(ValueError, match="lacks seeds; columns are"):
        TABLE_FIGURES[name]("Title", LINES, TABLES[name]().drop(columns="seeds"))


@pytest.mark.parametrize("name", sorted(TABLE_FIGURES))
def test_long_names_stay_on_the_page(name: str):
    """Nothing is cut off at an edge, and panels keep their space next to the names."""
    figure = TABLE_FIGURES[name]("Title", LINES, TABLES[name](TOGETHER + 3, long=True))
    figure.draw_without_rendering()
    assert figure.get_figwidth() == WIDTH
    page = figure.bbox
    for axes in figure.get_axes():
        box = axes.get_tightbbox()
        if box is not None and axes.get_visible():
            assert box.x0 >= -1, axes
            assert box.x1 <= page.width + 1, axes
    widest = max(axes.get_position().width for axes in figure.get_axes())
    assert widest > 0.1


def test_forest_of_effects_of_any_size():
    table = contrasts()
    figure = forest_figure("Title", LINES, table)
    whole, magnified, _ = figure.get_axes()
    assert whole.get_xlabel() == "effect (%), positive is better"
    assert magnified.get_xlabel() == "magnified (%)"
    assert magnified.get_xlim()[1] < 1 < 25 < whole.get_xlim()[1]
    assert whole.get_xscale() == magnified.get_xscale() == "linear"
    shown = _titles(figure)
    assert "cell0 vs untuned, PPL: 25.00 [24.90, 25.10] %" in shown
    assert shown.count("cell1 vs untuned, PPL: 0.02 [-0.08, 0.12] %") == 4, "point and whisker in both panels"
    assert shown.count("cell1 vs untuned, PPL: published 3.00 %") == 1, "beyond the second panel"
    assert shown.count("cell1 vs untuned, PPL: smallest detectable effect 0.20 %") == 2
    texts = [text.get_text() for text in _texts(figure)]
    assert {"0.02 [-0.08, 0.12]", "0.010", "core", "verdict"} <= set(texts)
    assert "against untuned" in _caption(figure)


def test_forest_of_alike_effects_has_one_panel_and_a_row_a_contrast():
    table = pd.concat([contrasts(1), contrasts(1).assign(measure="lim_ppl"), contrasts(1).assign(component="gates")])
    figure = forest_figure("Title", LINES, table)
    axes, _ = figure.get_axes()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cell0", "gates\ncell0"]
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    assert len(diamonds) == 3
    assert any("LIM-PPL" in text for text in _titles(figure))


@pytest.mark.parametrize(
    ("largest", "said"), [(25.0, "; dashed: 2 % and 5 %"), (-3.0, "; dashed: 2 %"), (0.5, ""), (0.0, ""), (np.nan, "")]
)
def test_captions_name_the_dashed_lines_that_are_drawn(largest: float, said: str):
    ends = {"effect": largest, "low": largest, "high": largest, "published": np.nan}
    for figure, table in ((forest_figure, contrasts(1)), (attribution_figure, attribution())):
        drawn = figure("Title", LINES, table.assign(**ends))
        assert f"whiskers: intervals{said};" in _caption(drawn)
        dashed = {
            abs(np.asarray(line.get_xdata())[0]) for line in drawn.get_axes()[0].lines if line.get_linestyle() == "--"
        }
        assert {f"{size:g} %" for size in dashed} == set(re.findall(r"\d %", said))


def test_pareto_front():
    params, ppl = [0, 10, 10, 20, 30, 40, 5], [30.0, 25.0, 25.0, 26.0, 20.0, np.nan, 31.0]
    assert pareto_front(params, ppl).tolist() == [True, True, True, False, True, False, False]
    with pytest.raises(ValueError, match="both must be"):
        pareto_front([1, 2], [1.0])


def test_pareto_shows_the_base_model_at_zero():
    figure = pareto_figure("Title", LINES, pareto())
    axes = figure.get_axes()[0]
    assert axes.get_xscale() == "log"
    figure.draw_without_rendering()
    assert axes.get_xticklabels()[0].get_text() == "0"
    assert "cell1: PPL 29.00 [28.50, 29.50], 1,000 trainable parameters" in _titles(figure)
    assert axes.get_ylabel() == "perplexity (log scale), lower is better"


@pytest.mark.parametrize("count", [8, 25])
def test_pareto_labels_do_not_cover_each_other(count: int):
    table = pareto(count).assign(trainable_params=np.linspace(1_000, 2_000, count), ppl=20 + np.arange(count) % 3)
    figure = pareto_figure("Title", LINES, table.assign(ppl_low=table["ppl"] - 0.2, ppl_high=table["ppl"] + 0.2))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in _texts(figure)]
    assert len(boxes) == count
    for place, box in enumerate(boxes):
        assert not any(box.shrunk(0.9, 0.7).overlaps(other.shrunk(0.9, 0.7)) for other in boxes[place + 1 :])


def test_attribution_has_a_point_a_way():
    figure = attribution_figure("Title", LINES, attribution())
    axes = figure.get_axes()[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == _names(3)
    assert axes.get_xlabel() == "effect of the component on perplexity (%), positive is better"
    shown = _titles(figure)
    assert len(shown) == 2 * 9, "a point and a whisker each"
    assert "cell0, Shapley: 3.00 [2.50, 3.50] % of PPL" in shown


def test_retrieval_has_a_panel_a_number_of_facts():
    figure = retrieval_figure("Title", LINES, retrieval())
    assert _labels(figure) == {"accuracy (%)", "log-probability (nats)", "depth (% of the text)"}
    panels = figure.get_axes()[:4]
    assert [axes.get_title(loc="left") for axes in panels] == ["10 facts", "20 facts", "", ""]
    assert [float(np.ravel(dot.get_xdata())[0]) for dot in panels[0].lines[1:5]] == pytest.approx(
        [0, 33.3, 66.7, 100], abs=0.1
    )
    shown = _titles(figure)
    assert len(shown) == 2 * 2 * 2 * (DEPTHS + 2), "points, a line and a band"
    assert "cell1, fact 10 of 10: accuracy 50.0 [40.0, 60.0] %" in shown
    assert "cell1, fact 1 of 20: logprob -1.50 [-1.70, -1.30] nats" in shown


def test_layout_is_settled_where_no_last_bit_can_differ():
    """The solver's result differs between processes; drawing again must not run it again."""
    figure = retrieval_figure("Title", LINES, retrieval(12))
    axes, parts = figure.get_axes(), figure.subfigs
    assert parts
    sides = [side for each in axes for side in each.get_position(original=True).bounds]
    sides += [side for part in parts for side in part.bbox_relative.extents]
    assert sides == pytest.approx([round(side, 6) for side in sides], rel=0, abs=1e-12)
    svg(figure)
    again = [side for each in axes for side in each.get_position(original=True).bounds]
    assert again == sides[: len(again)]


def test_heatmap_writes_accuracy_in_every_square():
    table = retrieval()
    table.loc[0, "accuracy"] = 0.07
    figure = retrieval_heatmap("Title", LINES, table)
    assert [text.get_text() for text in _texts(figure)].count("50") == len(table) - 1
    assert {"accuracy (%)", "facts", "depth of the fact"} == _labels(figure)
    assert "widest interval: ± 10.0 points" in _caption(figure)
    colours = {patch.get_facecolor() for axes in figure.get_axes() for patch in axes.patches}
    assert len(colours) == 2
    assert len(_titles(figure)) == len(table)


@pytest.mark.parametrize("cells", [3, TOGETHER + 4])
def test_positions_show_intervals_and_improvement(cells: int):
    rows = [
        (name, place, 3, 20.0, 19.0, 21.0, *((np.nan,) * 3 if name == "cell0" else (5.0, 4.0, 6.0)))
        for name in _names(cells)
        for place in range(10)
    ]
    columns = "cell bin seeds ppl ppl_low ppl_high improvement_pct improvement_low improvement_high"
    table = pd.DataFrame(rows, columns=pd.Index(columns.split()))
    edges = np.linspace(1, 101, 11)
    figure = ppl_by_position_figure("Title", LINES, table, edges=edges, unit="tokens", base="cell0")
    shown = _titles(figure)
    assert "cell1, position 1 to 11 (tokens): improvement 5.0 [4.0, 6.0] %" in shown
    assert ("cell1, position 1 to 11 (tokens): PPL 20.0 [19.0, 21.0]" in shown) == (cells <= TOGETHER)
    assert "cell0, position 91 to 101 (tokens): PPL 20.0 [19.0, 21.0]" in shown
    assert all("(" in label for label in _labels(figure)), "a unit on every axis"
    assert "seeds per cell: 3" in _caption(figure)


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_perplexity_by_bin_is_that_of_the_statistics(tmp_path: Path, seeds: list[int]):
    folder = write_recorded_study(tmp_path / "bins", CELLS, seeds, np.random.default_rng(1), **SIZE)
    table = ppl_by_bin(read_study(folder))
    assert len(table) == 10 * (1 + len(CELLS))
    sums = {
        path.name.split("-seed")[0] + path.name.split("-seed")[1][0]: pd.read_parquet(path / EVAL).query("bin == 4")
        for path in folder.glob("*-seed*")
    }
    ours = np.stack([sums[f"low{seed}"]["nll_sum"] for seed in seeds])
    tokens = sums["low0"]["tokens"].to_numpy()
    row = table[(table["cell"] == "low") & (table["bin"] == 4)].iloc[0]
    rng = np.random.default_rng(0)
    expected = stats.ppl(ours, tokens, rng, resamples=2_000)
    contrast = stats.improvement(ours, sums["untuned0"]["nll_sum"].to_numpy(), tokens, rng, resamples=2_000)
    tolerance = 1e-9 if len(seeds) > 1 else 0.05  # one seed: different bootstrap draws
    assert row["ppl"] == pytest.approx(expected.value)
    assert row["improvement_pct"] == pytest.approx(contrast.value)
    assert row[["ppl_low", "ppl_high"]].tolist() == pytest.approx([expected.low, expected.high], rel=tolerance)
    assert row[["improvement_low", "improvement_high"]].tolist() == pytest.approx([*contrast[1:]], rel=tolerance)
    assert row["seeds"] == len(seeds)
    assert table.loc[table["cell"] == "untuned", "improvement_pct"].isna().all()


def test_bins_that_few_windows_reach(tmp_path: Path):
    """Windows of different lengths: no interval from a single window, and no row for bins without any."""
    folder = write_recorded_study(tmp_path / "short", {"low": 20.0}, [0], np.random.default_rng(1), **SIZE)
    for run in folder.glob("*-seed*"):
        sums = pd.read_parquet(run / EVAL)
        short = (sums["bin"] == 9) | ((sums["bin"] == 8) & (sums["window"] > 0))
        sums.loc[short, ["nll_sum", "tokens"]] = 0
        sums.to_parquet(run / EVAL)
    table = ppl_by_bin(read_study(folder))
    assert sorted(set(table["bin"])) == list(range(9))
    last = table[(table["cell"] == "low") & (table["bin"] == 8)].iloc[0]
    assert np.isfinite(last[["ppl", "improvement_pct"]].to_numpy(dtype=float)).all()
    assert last[["ppl_low", "improvement_low"]].isna().all()


def test_figures_of_records_show_values_on_pointing(recorded: Path, table: pd.DataFrame):
    study = read_study(recorded)
    row = table[(table["cell"] == "low") & (table["reference"] == "untuned")].iloc[0]
    drawn = improvement_figure(study, table)
    assert drawn is not None
    bars = _titles(drawn)
    assert len(bars) == 2 * len(CELLS)
    assert any(text.startswith(f"low: improvement {row['improvement_pct']:.1f} [") for text in bars)
    assert sum("position" in text for text in _titles(position_figure(study, table))) == 10 * (1 + 2 * len(CELLS))
    assert sum("mean of 3 seeds" in text for text in _titles(loss_figure(study))) == len(CELLS)


def test_reports_write_both_formats(study: Path):
    report = write_report(study)
    assert {path.suffix for path in report.figures} == {".png"}, "what is logged and what summary.md shows"
    for path in report.figures:
        assert path.with_suffix(".svg").read_text().count("<title>") > len(CELLS)
    assert ".svg" not in (study / "summary.md").read_text()


def test_texts_on_pointing_are_escaped():
    table = attribution(1)
    table["component"] = 'a<b & "c"'
    assert f"{escape(table['component'].iloc[0])}, Shapley" in svg(attribution_figure("Title", LINES, table))


def test_names_are_folded_at_separators():
    assert fold("lora_rank_8+bucketed_positions-log", 20) == "lora_rank_8+\nbucketed_positions-\nlog"
    assert fold("x" * 30, 20) == "x" * 20 + "\n" + "x" * 10
    assert text_size("a\nb")[1] == pytest.approx(2 * text_size("a")[1])
