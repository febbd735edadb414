"""The reference of training settings is current, and every setting has a meaning."""

from pathlib import Path

from arl2.training.settings_page import page

PAGE = Path(__file__).parents[2] / "docs" / "training-settings.md"


def test_the_page_is_current():
    """To write it: python -m arl2.training.settings_page > docs/training-settings.md."""
    assert PAGE.read_text() == page()


def test_it_says_what_the_code_says():
    text = page()
    assert "| `loop.learning_rate` | a number | `0.001` | " in text
    assert "| `teacher` | text | none: it must be given | " in text
    assert text.count("## `dmd`") == 2
    assert "``" not in text
