"""HTML pages from templates; an attribute that a template misspells is an error."""

import base64

import jinja2


def load_template(name: str) -> jinja2.Template:
    """Return a template of this package.

    Parameters
    ----------
    name : str
        File in the folder `templates`.

    Returns
    -------
    jinja2.Template
        Escapes what it renders, and raises jinja2.UndefinedError for an unknown attribute.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mindllm.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def to_data_uri(png: bytes) -> str:
    """Return PNG bytes as a data URI, for the `src` of an image in a page without other files.

    Examples
    --------
    >>> to_data_uri(b"PNG")
    'data:image/png;base64,UE5H'
    """
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
