"""What all pages share: one look, figures in words, images inside the page."""

from __future__ import annotations

import base64
from typing import Any

import jinja2
from markupsafe import Markup

from recsys.evaluate import wording


def render(package: str, template: str, **context: Any) -> str:
    """One of a package's templates as HTML, on `base.html`: styles and images inside, nothing fetched from elsewhere.

    Every text of `context` is escaped; a name that a template misses is an error. Functions of `wording` are filters.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name, package_path="") for name in (package, "recsys.evaluate")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = (
        wording.number,
        wording.change,
        wording.percent,
        wording.interval,
        wording.duration,
        wording.size,
        wording.moment,
        wording.delay,
        wording.title,
        wording.verdict,
    )
    environment.filters.update({helper.__name__: helper for helper in helpers})
    return environment.get_template(template).render(**context)


def image(svg: str, alt: str) -> Markup:
    """An SVG as an element that holds it; as an <img>, its ids and styles stay its own."""
    data = base64.b64encode(svg.encode()).decode()
    return Markup('<img alt="{}" src="data:image/svg+xml;base64,{}">').format(alt, data)
