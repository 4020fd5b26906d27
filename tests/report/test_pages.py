"""Templates: a misspelled attribute is an error, and every CSS class is both used and defined."""

import re
from importlib.resources import files

import jinja2
import pytest

from mindllm.report.pages import load_template

TEMPLATES = files("mindllm.report").joinpath("templates")


def test_a_misspelled_attribute_is_an_error() -> None:
    template = load_template("store.html.jinja")
    template = template.environment.from_string("{{ report.nmae }}")
    with pytest.raises(jinja2.UndefinedError, match="nmae"):
        template.render(report=object())


@pytest.mark.parametrize("name", sorted(file.name for file in TEMPLATES.iterdir()))
def test_css_classes_that_are_used_are_defined(name: str) -> None:
    style, body = TEMPLATES.joinpath(name).read_text(encoding="utf-8").split("</style>")
    used = {word for value in re.findall(r'class="([\w ]+)"', body) for word in value.split()}
    selectors = re.sub(r"\{[^}]*\}", " ", style)
    assert used - set(re.findall(r"\.([a-z]\w*)", selectors)) == set()
