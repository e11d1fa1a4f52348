"""The browser of the other integration tests starts, runs scripts and reaches this machine's servers."""

import pytest
from support.browser import node, open_page

pytestmark = pytest.mark.integration


def test_node_and_chromium_run():
    assert node("--print", "6 * 7").stdout == "42\n"
    with pytest.raises(AssertionError, match="is not defined"):
        node("--eval", "missing()")
    with open_page(viewport={"width": 300, "height": 200}) as page:
        page.set_content("<p>a “text”</p><script>document.title = typeof WebAssembly</script>")
        assert (page.title(), page.inner_text("p")) == ("object", "a “text”")
