from collections import Counter
from xml.etree import ElementTree

import pytest

from recsys.evaluate.flow import Model, flow_plot

SVG = "{http://www.w3.org/2000/svg}"


def model(name: str, source: str = "events/*.parquet") -> Model:
    series = {f"user_{name}": "user v1", f"item_{name}": "item v1"}
    return Model(name=name, notes=["click"], source=[source], series=series)


def texts(drawn: str) -> Counter[str]:
    return Counter(node.text or "" for node in ElementTree.fromstring(drawn).iter(f"{SVG}text"))


def test_models_of_one_source_share_its_box():
    drawn = texts(flow_plot([model("a", "x"), model("b", "y"), model("c", "x")], {"none": [], "all": ["user_a"]}))
    assert drawn == Counter(
        {"x": 1, "y": 1, "click": 3, "user v1": 3, "item v1": 3, **dict.fromkeys("abc", 1)}
    ) + Counter({"none": 1, "all": 1})


def test_a_reader_has_a_dot_for_each_series_it_reads():
    def filled(*names: str) -> int:
        return flow_plot([model("a"), model("b")], {"reader": names}).count("<use ")

    assert filled("user_a") == 4 + 1  # an open dot for every series, and the one that is read
    assert filled("user_a", "item_b") == 4 + 2
    assert filled("gone") == 4


@pytest.mark.parametrize("count", [1, 2, 5])
def test_long_names_are_cut_and_nothing_leaves_the_image(count):
    long = "a_name_that_is_much_longer_than_its_place"
    models = [model(f"{long}_{i}", f"{long}/{long}/{i}.parquet") for i in range(count)]
    drawn = flow_plot(models, {f"{long} and more": [f"user_{long}_0"]})
    assert "…" in drawn
    letter, width = 4.0, 262.0  # points; letters are rather wider
    for text in texts(drawn):
        place = width if "parquet" in text or "more" in text else width / count
        assert len(text) * letter < place, text


def test_what_stands_for_markup_or_formulas_is_text():
    assert texts(flow_plot([model("<b>$x^2$</b>")], {}))["<b>$x^2$</b>"] == 1


def test_without_a_model_there_is_no_figure():
    assert flow_plot([], {"none": []}) == ""
