"""HTML pages of templates."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **content: Any) -> str:
    """Fill a template of this room, with everything in it escaped

    Parameters
    ----------
    template : str
        Name of the file, such as "run.html.j2".
    **content
        Its variables.

    Raises
    ------
    jinja2.UndefinedError
        When a variable of the template is missing.
    """
    environment = Environment(
        loader=PackageLoader("pyannote_prune", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)
