"""A shop that is open now dates many changes of a second ahead of the real time."""

from esl_pipeline.sandbox.woocommerce.shop import Shop, real_time


def test_what_was_changed_last_is_known_though_it_is_ahead_of_the_shops_own_time() -> None:
    shop = Shop()
    shop.clock = real_time
    tea = shop.add("Tea", "1.99")
    for number in range(30):
        shop.change(tea, name=f"Tea {number}")
    assert shop.latest_change() == tea.modified_at > shop.time()
