"""Which actor ends, so that an image that may end its process gets a fresh one."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.driver.poison_isolation import Task
from maskrcnn_jobs.driver.slot import START_S, Slot, to_end

from maskrcnn.pipeline.plan import Shard

TASK = Task(Shard("1-00000000", 0, 4))


def slot(ready: bool, fresh: bool, busy: bool, age_s: float) -> Slot:
    """Return an actor as it is at time 0; only one that is ready can be busy."""
    queue = deque([(None, TASK)] if ready and busy else [])
    return Slot(None, None, 0, ready=ready, fresh=fresh, queue=queue, created=-age_s)


SLOTS = st.lists(
    st.builds(
        slot, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0, START_S / 2, 2 * START_S])
    )
)


@given(slots=SLOTS)
def test_an_idle_actor_ends_only_where_no_fresh_one_can_be_expected(slots: list[Slot]) -> None:
    ended = to_end(slots, 0.0)
    idle = [one for one in slots if one.ready and not one.queue]
    expected = [
        one for one in slots if (one.ready and one.fresh) or (not one.ready and -one.created < START_S)
    ]
    assert (ended in idle) if idle and not expected else ended is None


def test_a_replacement_for_which_there_is_no_room_does_not_hold_the_run() -> None:
    """A node was lost, and with it the place of the actor that was requested for the image."""
    working, replacement = slot(True, False, False, 300), slot(False, True, False, 0)
    assert to_end([working, replacement], 0.0) is None
    assert to_end([working, replacement], START_S) is working
