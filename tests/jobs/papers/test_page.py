from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import pytest

from jobs.papers.line_chart import Line, LineChart
from jobs.papers.markdown import spread, table
from jobs.papers.page import build_page, write_page
from jobs.papers.study import ResultStore, Section, Study, measure_missing, section_of


def study(name: str = "squares", needs_data: bool = False, measure=None) -> Study:
    return Study(
        name=name,
        title=name.capitalize(),
        cells=[{"n": n, "seed": 0} for n in (1, 2, 3)],
        measure=measure or (lambda cell: {"square": cell["n"] ** 2}),
        write=lambda pairs: Section(
            " ".join(str(result["square"]) for _, result in pairs), {"one.svg": "<svg/>"}
        ),
        needs_data=needs_data,
    )


def measure_all(one: Study, store: ResultStore) -> int:
    with ThreadPoolExecutor(1) as executor:
        return len(list(measure_missing(one, store, executor)))


def test_measured_cells_are_kept_and_not_measured_again(tmp_path):
    path = tmp_path / "out" / "squares.json"
    assert measure_all(study(), ResultStore(path)) == 3
    assert measure_all(study(), ResultStore(path)) == 0
    assert section_of(study(), ResultStore(path)).text == "1 4 9"


def test_run_that_fails_goes_on_where_it_was(tmp_path):
    path = tmp_path / "squares.json"

    def breaks(cell):
        if cell["n"] == 3:
            raise OSError("no space")
        return {"square": cell["n"] ** 2}

    with pytest.raises(OSError, match="no space"):
        measure_all(study(measure=breaks), ResultStore(path))
    assert measure_all(study(), ResultStore(path)) == 1


def test_another_parameter_is_another_result(tmp_path):
    store = ResultStore(tmp_path / "squares.json")
    store.put({"n": 1, "seed": 0}, {"square": 1})
    assert store.get({"seed": 0, "n": 1}) == {"square": 1}
    assert store.get({"n": 1, "seed": 1}) is None
    store.clear()
    assert ResultStore(tmp_path / "squares.json").get({"n": 1, "seed": 0}) is None


def test_section_without_all_results_is_refused(tmp_path):
    with pytest.raises(KeyError, match="squares has no result"):
        section_of(study(), ResultStore(tmp_path / "squares.json"))


def test_page_has_sections_in_order_and_writes_figures(tmp_path):
    studies = [study("first"), study("second")]
    sections = {"second": Section("2"), "first": Section("1", {"one.svg": "<svg/>"})}
    page = write_page(tmp_path, studies, sections).read_text()
    assert page.index("## First\n\n1\n") < page.index("## Second\n\n2\n")
    assert (tmp_path / "figures" / "one.svg").read_text() == "<svg/>"


def test_study_that_was_not_run_keeps_its_section_byte_for_byte():
    studies = [study("first"), study("second", needs_data=True)]
    text = "A paragraph.\n\n| a | b |\n| :-- | --: |\n| 1 | 2 |\n\n### Part\n\nAnother."
    whole = build_page(studies, {"first": Section("old"), "second": Section(text)})
    again = build_page(studies, {"first": Section("new")}, existing=whole)
    assert again == whole.replace("\nold\n", "\nnew\n")


def test_study_without_data_or_section_says_why():
    assert "needs CASTILLO" in build_page([study(needs_data=True)], {})


def test_paragraphs_are_wrapped_and_tables_are_not():
    long, row = "word " * 60, "| " + "x" * 200 + " |"
    page = build_page([study()], {"squares": Section(f"{long}\n\n{row}")})
    assert row in page
    assert max(len(line) for line in page.splitlines() if line.startswith("word")) <= 120


def test_table_refuses_a_ragged_row():
    assert table(("a", "b"), [["1", "2"]]) == "| a | b |\n| :-- | --: |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="a row has 1 cells, the head 2"):
        table(("a", "b"), [["1"]])


def test_spread_is_the_sample_deviation():
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert spread([1.5]) == "1.50"


def chart(*lines: Line) -> LineChart:
    return LineChart("Title & more", "x", "y", ["1", "2", "4"], list(lines))


def test_chart_is_a_document_with_a_point_per_value():
    made = chart(Line("a < b", [1.0, 10.0, float("nan")]), Line("c", [2.0, 2.0, 2.0]))
    drawn = made.svg()
    root = ElementTree.fromstring(drawn)
    marks = [u.get("style", "") for u in root.iter("{http://www.w3.org/2000/svg}use")]
    # One for each value, and one in the legend.
    assert [sum(c in m for m in marks) for c in ("fill: #0072b2", "fill: #d55e00")] == [3, 4]
    assert "a < b" in [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert made.svg() == drawn


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([Line("a", [1.0])], "has 1 values"),
        ([Line("a", [1.0, 0.0, 2.0])], "0 or less"),
        ([Line("a", [float("nan")] * 3)], "no positive value"),
    ],
)
def test_chart_refuses_what_it_cannot_draw(lines, message):
    with pytest.raises(ValueError, match=message):
        chart(*lines)
