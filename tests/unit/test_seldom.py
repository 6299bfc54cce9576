import time

from klong_rl.seldom import Seldom


def test_what_comes_often_is_let_through_once_in_a_while():
    seldom = Seldom(every_s=0.2)
    assert [seldom.due() for _ in range(100)].count(True) == 1
    time.sleep(0.21)
    assert seldom.due() and not seldom.due()
