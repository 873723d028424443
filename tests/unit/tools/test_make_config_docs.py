import runpy

from tests.support.paths import ROOT


def test_the_configuration_page_is_what_the_config_classes_say():
    tool = runpy.run_path(str(ROOT / "tools" / "make_config_docs.py"))
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == tool["render"](), "run python tools/make_config_docs.py"
