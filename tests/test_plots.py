"""Figures show the numbers they are given, in one style, and leave nothing behind."""

import io
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from pneumo_lib import display, plots, plots_panels
from pneumo_lib.errors import UsageError

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")
RNG = np.random.default_rng(0)
FILMS = RNG.random((5, 16, 12)).astype(np.float32)


@pytest.fixture(autouse=True)
def style_and_no_figure_left_in_pyplot():
    plots.use_style()
    yield
    assert plt.get_fignums() == []


def texts(figure):
    """Every visible non-empty text of a figure, after a first drawing (tick labels exist only then)."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def pictures(figure):
    return [image for ax in figure.axes for image in ax.images]


def roc_curve(power):
    rate = np.linspace(0, 1, 20)
    return SimpleNamespace(fpr=rate, tpr=rate**power)


def test_class_styles_differ_in_colour_marker_and_line_and_avoid_the_colours_of_verdicts():
    styles = list(plots.CLASS_STYLE.values())
    for part in ("color", "marker", "linestyle"):
        assert len({style[part] for style in styles}) == 3
    assert {style["color"] for style in styles} <= set(plots.OKABE_ITO)
    assert plots.CLASS_STYLE["NORMAL"]["color"] != "#009E73" and plots.CLASS_STYLE["COVID19"]["color"] != "#D55E00"
    assert len({plots.style_of("series", i)["color"] for i in range(7)}) == 7
    assert plots.style_of("NORMAL", 5) == plots.CLASS_STYLE["NORMAL"]


def test_show_emits_alt_text_and_writes_the_file(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(display, "display", lambda data, **options: calls.append((data, options)))
    folder = tmp_path / "run" / "figures"
    assert plots.show(plots.image_grid(FILMS, list("abcde")), "Five films.", name="01_films", folder=folder) is None
    (data, options), *rest = calls
    assert not rest and options["raw"] and options["metadata"] == {"image/png": {"alt": "Five films."}}
    inline, saved = Image.open(io.BytesIO(data["image/png"])), Image.open(folder / "01_films.png")
    assert data["text/plain"] == "Five films."
    assert [path.name for path in folder.iterdir()] == ["01_films.png"]
    assert saved.width / inline.width == pytest.approx(display.FILE_DPI / display.INLINE_DPI, rel=0.02)
    assert saved.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_failed_saving_keeps_the_old_file(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "display", lambda *_, **__: None)
    (tmp_path / "a.png").write_bytes(b"old")
    drawn = iter([b"inline"])
    monkeypatch.setattr(display, "_png", lambda *_: next(drawn))
    with pytest.raises(StopIteration):
        plots.show(plots.image_grid(FILMS, list("abcde")), "text", name="a", folder=tmp_path)
    assert (tmp_path / "a.png").read_bytes() == b"old"


@pytest.mark.parametrize(("alt", "name"), [("", "a"), ("  ", "a"), ("text", "../a"), ("text", "a b"), ("text", "")])
def test_show_refuses_missing_text_and_odd_names(alt, name, tmp_path):
    with pytest.raises(UsageError):
        plots.show(plots.image_grid(FILMS, list("abcde")), alt, name=name, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_class_counts_are_the_bars_and_the_numbers():
    table = pd.DataFrame({"split": ["train"] * 6 + ["test"] * 3, "label": [0, 1, 1, 2, 2, 2, 0, 0, 2]})
    figure = plots.class_counts(table, CLASSES)
    for ax, counts in zip(figure.axes, ([1, 2, 3], [2, 0, 1]), strict=True):
        assert [bar.get_width() for bars in ax.containers for bar in bars] == counts
        colours = [to_hex(bar.get_facecolor()).upper() for bars in ax.containers for bar in bars]
        assert colours == [plots.CLASS_STYLE[name]["color"] for name in CLASSES]
        assert {str(n) for n in counts} <= {text.get_text() for text in ax.texts}
    assert [ax.get_title() for ax in figure.axes] == ["train (6)", "test (3)"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_size_and_intensity_uses_the_class_styles():
    sizes = {name: RNG.integers(100, 900, (7, 2)) for name in CLASSES}
    figure = plots.size_and_intensity(sizes, {name: np.full(4, 0.25) for name in CLASSES})
    left, right = figure.axes
    for name, dots, line in zip(CLASSES, left.lines, right.lines, strict=True):
        np.testing.assert_array_equal(dots.get_xydata(), sizes[name])
        assert dots.get_color() == line.get_color() == plots.CLASS_STYLE[name]["color"]
        np.testing.assert_allclose(line.get_xdata(), [0.125, 0.375, 0.625, 0.875])
    assert any(text.endswith(" %") for text in texts(figure))


def test_image_grid_marks_wrong_films_by_sign_and_colour_and_keeps_limits_and_aspect():
    figure = plots.image_grid(FILMS, list("abcde"), wrong=[False, True, False, False, False])
    titles = [ax.title for ax in figure.axes[:5]]
    assert [title.get_text() for title in titles] == ["a", "✗ b", "c", "d", "e"]
    assert [title.get_color() == plots.WRONG for title in titles] == [False, True, False, False, False]
    assert [ax.get_frame_on() for ax in figure.axes[:5]] == [False, True, False, False, False]
    assert {image.get_clim() for image in pictures(figure)} == {(0, 1)}
    assert {ax.get_aspect() for ax in figure.axes[:5]} == {1.0}
    assert len(pictures(figure)) == 5 and pictures(figure)[0].get_cmap().name == "gray"


def test_bytes_are_drawn_between_0_and_255():
    figure = plots.image_grid((FILMS * 255).astype(np.uint8), list("abcde"))
    assert {image.get_clim() for image in pictures(figure)} == {(0, 255)}


@pytest.mark.parametrize("titles", [[], ["a"] * 4])
def test_image_grid_refuses_titles_of_another_number(titles):
    with pytest.raises(UsageError, match="5 pictures"):
        plots.image_grid(FILMS, titles)


def test_pair_grid_puts_partners_side_by_side():
    figure = plots.pair_grid(FILMS[:2], FILMS[2:4], ["r = 0.99", "r = 0.98"])
    shown = [image.get_array() for image in pictures(figure)]
    for picture, index in zip(shown, (0, 2, 1, 3), strict=True):
        np.testing.assert_array_equal(picture, FILMS[index])
    with pytest.raises(ValueError):
        plots.pair_grid(FILMS[:2], FILMS[2:5], ["a", "b"])


def test_noise_grid_leaves_gaps_where_a_kind_has_fewer_levels():
    rows = {"gaussian": {0.0: FILMS[0], 0.5: FILMS[1], 0.7: FILMS[2]}, "salt_pepper": {0.0: FILMS[3], 0.1: FILMS[4]}}
    figure = plots.noise_grid(rows)
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1, 1, 0]
    assert [ax.get_title() for ax in figure.axes] == ["0", "0.5", "0.7", "0", "0.1", ""]
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["gaussian", "salt\npepper"]


def test_denoiser_strips_show_errors_on_one_scale_around_zero():
    outputs = {"noisy": (FILMS[1], 8.24), "unet_denoiser": (FILMS[2], 27.91)}
    figure = plots.denoiser_strips(FILMS[0], outputs)
    above, below = pictures(figure)[:3], pictures(figure)[3:6]
    assert {image.get_clim() for image in above} == {(0, 1)} and {image.get_clim() for image in below} == {(-0.5, 0.5)}
    np.testing.assert_allclose(below[2].get_array(), FILMS[2] - FILMS[0])
    assert not below[0].get_array().any()
    assert {"clean", "noisy\n8.2 dB", "unet\ndenoiser\n27.9 dB"} <= set(texts(figure))


def test_cam_grid_has_one_scale_the_untouched_film_and_says_when_there_is_no_evidence():
    maps = [np.full((4, 3), 0.9), np.zeros((4, 3)), np.eye(4, 3) * 0.2]
    figure = plots.cam_grid(FILMS[:3], maps, ["a", "b", "c"], vmax=2.0)
    plain, overlays = figure.axes[:6:2], figure.axes[1:6:2]
    assert [len(ax.images) for ax in plain] == [1, 1, 1]
    assert {ax.images[1].get_clim() for ax in overlays} == {(0, 2.0)}
    assert [ax.get_title() for ax in overlays] == ["", "no positive evidence", ""]
    for ax in overlays:
        assert tuple(ax.images[1].get_extent()) == tuple(ax.images[0].get_extent())
    alpha = plots.CAM_MAP(np.linspace(0, 1, 50))[:, 3]
    assert alpha[0] == 0 and alpha.max() == 0.5 and (np.diff(alpha) >= 0).all()
    with pytest.raises(ValueError):
        plots.cam_grid(FILMS[:3], maps[:2], ["a", "b", "c"], vmax=2.0)


def test_feature_maps_share_one_scale():
    maps = RNG.normal(size=(10, 6, 6))
    figure = plots.feature_map_grid(maps)
    shown = [ax.images[0] for ax in figure.axes[:10]]
    assert {image.get_clim() for image in shown} == {(maps.min(), maps.max())}
    assert [ax.get_title() for ax in figure.axes[:10]] == [str(i) for i in range(10)]


def test_curves_draw_what_the_history_has_and_mark_the_kept_epoch():
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2, 1], "val_loss": [3.0, 2.5, 2.6]})
    history["val_accuracy"] = [0.5, 0.7, 0.8]
    figure = plots.curves(history, {"loss": "cross-entropy (nats)", "accuracy": "accuracy"}, best=2)
    loss, accuracy = figure.axes
    assert [list(line.get_ydata()) for line in loss.lines[:2]] == [[3, 2, 1], [3, 2.5, 2.6]]
    assert len(accuracy.lines) == 2 and list(accuracy.lines[1].get_xdata()) == [2, 2]
    assert accuracy.lines[0].get_color() == loss.lines[1].get_color() != loss.lines[0].get_color()
    assert {"training", "validation", "weights kept: epoch 2", "epoch", "80 %"} <= set(texts(figure))
    with pytest.raises(UsageError, match="val_psnr"):
        plots.curves(history, {"psnr": "PSNR (dB)"})


def test_intervals_write_the_numbers_and_the_reported_figure():
    table = pd.DataFrame({"name": ["a", "b", "c"], "value": [0.9457, 0.5, np.nan], "low": [0.93, 0.4, np.nan]})
    table["high"], table["reported"] = [0.957, 0.6, np.nan], [0.9697, np.nan, np.nan]
    figure = plots.intervals(table, label="accuracy", percent=True)
    assert [text.get_text() for text in figure.axes[0].texts] == ["94.6 % [93.0, 95.7]", "50.0 % [40.0, 60.0]", "n/a"]
    assert figure.axes[0].lines[1].get_xdata()[0] == 0.9697
    assert figure.axes[0].get_ylim() == (2.5, -0.5)
    assert "reported by the source" in texts(figure)
    plain = plots.intervals(table.drop(columns="reported"), label="PSNR (dB)")
    assert plain.axes[0].texts[0].get_text() == "0.95 [0.93, 0.96]" and "reported by the source" not in texts(plain)


def test_intervals_of_paired_differences_show_every_pair_and_zero():
    pairs = {"a": np.array([0.01, -0.02]), "b": np.array([0.03])}
    table = pd.DataFrame({"name": ["a", "b"], "value": [-0.005, 0.03], "low": [-0.02, 0.01], "high": [-0.0001, 0.05]})
    figure = plots.intervals(table, label="difference (points)", percent=True, pairs=pairs)
    assert figure.axes[0].texts[0].get_text() == "−0.5 % [−2.0, 0.0]"
    rings = figure.axes[0].lines[-1].get_xydata()
    np.testing.assert_allclose(rings, [[0.01, 0], [-0.02, 0], [0.03, 1]])
    assert any(list(line.get_xdata()) == [0, 0] for line in figure.axes[0].lines)


def test_lines_with_intervals_have_a_band_in_the_line_colour():
    table = pd.DataFrame({"series": ["raw"] * 2 + ["NORMAL"] * 2, "x": [0, 0.5] * 2, "value": [0.9, 0.8, 0.7, 0.6]})
    table["low"], table["high"] = table["value"] - 0.05, table["value"] + 0.05
    ax = plots.lines_with_intervals(table, xlabel="σ", ylabel="accuracy").axes[0]
    for line, band in zip(ax.lines, ax.collections, strict=True):
        assert to_hex(band.get_facecolor()[0]) == to_hex(line.get_color())
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx(line.get_ydata().max() + 0.05)
    assert ax.lines[1].get_color() == plots.CLASS_STYLE["NORMAL"]["color"]


def test_heatmap_shows_percent_and_names_its_axes():
    pivot = pd.DataFrame([[0.912, 0.5], [np.nan, 0.25]], index=pd.Index([0.1, 0.5], name="σ"))
    pivot.columns = pd.Index([10, 50], name="epochs")
    ax = plots.heatmap(pivot, label="validation accuracy").axes[0]
    assert [text.get_text() for text in ax.texts] == ["91.2", "50.0", "25.0"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epochs", "σ")


def test_confusion_matrix_writes_counts_and_row_shares_and_survives_an_empty_class():
    figure = plots.confusion_matrix(np.array([[3, 1, 0], [0, 0, 0], [0, 50, 1950]]), CLASSES)
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells[:4] == ["3\n75.0 %", "1\n25.0 %", "0\n0.0 %", "0\nn/a"] and cells[8] == "1,950\n97.5 %"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(CLASSES)
    assert figure.axes[0].collections[0].get_clim() == (0, 100)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("predicted", "true")


def test_roc_uses_class_colours_and_states_the_area():
    figure = plots.roc({name: roc_curve(0.2) for name in CLASSES}, dict.fromkeys(CLASSES, 0.98765))
    lines = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    assert all(lines[f"{name} (AUC 0.988)"] == plots.CLASS_STYLE[name]["color"] for name in CLASSES)
    assert "chance" in lines


def test_reliability_draws_bins_and_the_share_of_images():
    bins, count = np.array([np.nan, 0.4, 0.9]), np.array([0, 25, 75])
    curve = SimpleNamespace(confidence=bins, accuracy=bins - 0.1, low=bins - 0.2, high=bins, count=count)
    left, right = plots.reliability({"before": curve}).axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), bins - 0.1)
    np.testing.assert_array_equal(right.patches[0].get_data().values, [0, 0.25, 0.75])


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, (1.0, 0.8)), (0.65, (0.5, 0.9)), (0.99, (0.0, 1.0))])
def test_coverage_marks_what_the_threshold_decides(threshold, expected):
    curve = SimpleNamespace(
        coverage=np.array([0.2, 0.5, 1.0]), accuracy=np.array([1.0, 0.9, 0.8]), threshold=np.array([0.9, 0.7, 0.4])
    )
    figure = plots.coverage_accuracy(curve, threshold=threshold)
    mark = figure.axes[0].lines[1]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == expected
    assert f"{100 * expected[0]:.1f} % decided" in mark.get_label()


def test_histogram_of_controls_counts_every_pair_and_draws_the_cut():
    ax = plots.histogram_controls(RNG.uniform(0, 0.8, 200), RNG.uniform(0.96, 1, 30), threshold=0.95).axes[0]
    assert {"different films (200)", "planted copies (30)"} <= {patch.get_label() for patch in ax.collections}
    assert list(ax.lines[0].get_xdata()) == [0.95, 0.95] and ax.get_yscale() == "log"


def corruption_table(kinds, *, low=0.62):
    rows = [
        {"kind": kind, "level": level, "value": value, "low": max(value - 0.05, low), "high": value + 0.05, "ece": ece}
        for kind in kinds
        for level, value, ece in ((0, 0.9, 0.01), (0.5, 0.8, 0.05), (2, 0.66, 0.2))
    ]
    return pd.DataFrame(rows)


def test_corruptions_have_a_pair_of_panels_for_each_kind_all_on_one_scale():
    kinds = [f"kind {k}" for k in range(11)]
    table, fewer = corruption_table(kinds), corruption_table(kinds[:2])
    figure = plots_panels.corruptions(
        {"a": table, "b": fewer}, titles={kind: f"{kind}\narea" for kind in kinds}, units={"kind 1": "some unit"}
    )
    assert len(figure.axes) == 24 and sum(not ax.get_visible() for ax in figure.axes) == 2, "eleven kinds in four rows"
    upper = [ax for k in (0, 6, 12, 18) for ax in figure.axes[k : k + 3]][:11]
    lower = [ax for k in (3, 9, 15, 21) for ax in figure.axes[k : k + 3]][:11]
    assert [ax.get_title() for ax in upper] == [f"{kind}\narea" for kind in kinds]
    assert [len(ax.lines) for ax in upper] == [len(ax.lines) for ax in lower]
    assert {len(line.get_xdata()) for ax in upper[2:] for line in ax.lines[1:]} == {0}, "b has not met these"
    assert upper[5].lines[0].get_ydata().tolist() == [0.9, 0.8, 0.66]
    assert lower[5].lines[0].get_ydata().tolist() == [0.01, 0.05, 0.2]
    band = upper[5].collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(0.95) and band.min() == pytest.approx(0.62)
    assert {ax.get_ylim() for ax in upper} == {(0.6, 1.005)} and len({ax.get_ylim() for ax in lower}) == 1
    assert lower[0].lines[0].get_linestyle() != upper[0].lines[0].get_linestyle()
    assert lower[0].lines[0].get_color() == upper[0].lines[0].get_color() != upper[0].lines[1].get_color()
    assert (lower[1].get_xlabel(), lower[2].get_xlabel()) == ("some unit", "level")


def test_corruptions_are_legible_and_nothing_overlaps():
    kinds = [f"kind {k}" for k in range(12)]
    titles = {kind: f"{kind}\narea 0.938 / 0.648 / 0.750\nof ECE 0.015 / 0.276 / 0.015" for kind in kinds}
    tables = {name: corruption_table(kinds) for name in ("resnet18_s2d", "aernet", "resnet18_googlenet_x2")}
    figure = plots_panels.corruptions(
        tables, titles=titles, units=dict.fromkeys(kinds, "share of the mean that is lost")
    )
    assert {"accuracy", "ECE", "aernet", "95 % interval", "60 %", "10 %"} <= set(texts(figure))
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in shown) >= 9
    figure.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
    boxes += [ax.xaxis.label.get_window_extent() for ax in figure.axes if ax.get_xlabel()]
    assert len(boxes) == 24
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_no_text_is_smaller_than_9_points():
    table = pd.DataFrame({"name": ["a"], "value": [0.9], "low": [0.8], "high": [0.95]})
    matrix = plots.confusion_matrix(np.eye(3, dtype=int), CLASSES)
    for figure in (plots.intervals(table, label="x"), matrix, plots.image_grid(FILMS, list("abcde"))):
        assert texts(figure)
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9
