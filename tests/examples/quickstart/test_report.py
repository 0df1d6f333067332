"""What the quickstart prints and draws, against numbers of the data set and rows made by hand."""

import re
from pathlib import Path

import pytest
from PIL import Image

from examples.quickstart import data, report
from examples.quickstart.run import NEXT


def row(number: int, right: bool, truth: str = "yes") -> dict[str, str]:
    text = f" {truth.title()} " if right else "other"
    return {"prompt": f"<image>\nquestion {number}", "image": f"{number}.png", "text": text, "truth": truth}


def test_accuracy_is_counted_by_kind_of_answer() -> None:
    rows = [row(0, True), row(1, False, "no"), row(2, True, "teal"), row(3, True, "circle")]
    assert report.accuracy(rows) == {"all": 0.75, "yes/no": 0.5, "colour": 1.0, "shape": 1.0}


def test_the_baselines_are_those_of_the_data_set() -> None:
    # https://github.com/vzhou842/easy-VQA: 9,673 test questions
    assert len(data.questions("test")) == 9673
    assert {name: round(share, 3) for name, share in report.baselines().items()} == {
        "question only": 0.670,
        'always "yes"': 0.373,
    }


@pytest.mark.parametrize(
    ("rights", "wrongs", "shown"), [(9000, 600, (12, 4)), (300, 2, (14, 2)), (5, 90, (5, 11)), (3, 4, (3, 4))]
)
def test_the_contact_sheet_is_full_of_rows_from_all_over_the_file(
    rights: int, wrongs: int, shown: tuple[int, int], tmp_path: Path
) -> None:
    rows = [row(number, number < rights) for number in range(rights + wrongs)]
    chosen = report.chosen(rows)
    assert [report.is_right(one) for one in chosen] == [True] * shown[0] + [False] * shown[1]
    assert len({one["image"] for one in chosen}) == len(chosen)
    for one in chosen:
        Image.new("RGB", (4, 4)).save(tmp_path / one["image"])
    report.draw_contact_sheet(rows, tmp_path, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (1210, 1320)


def test_the_next_commands_are_those_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/quickstart.md").read_text()
    typed = [
        line.strip() for line in NEXT.splitlines() if re.match(r"    (echo|NEMO_CONFIG=quickstart_inf)", line)
    ]
    assert len(typed) == 2
    assert [line for line in typed if line not in page] == []
