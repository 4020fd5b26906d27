"""Pages that are opened in a browser."""

import webbrowser
from pathlib import Path

from mindllm.cli.options import console


def open_page(page: Path) -> None:
    """Open a page of this machine in the browser; where there is none, say where the page is."""
    address = page.resolve().as_uri()
    try:
        is_open = webbrowser.open(address)
    except webbrowser.Error:
        is_open = False
    if not is_open:
        console.print(
            f"no browser was found on this machine; open the page elsewhere: {address}",
            highlight=False,
            soft_wrap=True,
        )
