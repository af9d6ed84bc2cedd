from gpt2_rlhf.rows.conversations import MANY, conversations


def talk(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns)) + "\n\nAssistant:"


def count(*prompts: str) -> int:
    return len(set(conversations(prompts).values()))


def test_prompts_with_one_first_turn_are_one_conversation() -> None:
    assert count(talk("Bread?"), talk("Bread?", "Mix.", "And then?"), talk("Bread?", "Buy it.", "Where?")) == 1
    assert count(talk("Bread?"), talk("Cake?")) == 2


def test_white_space_does_not_make_another_conversation() -> None:
    assert count(talk("How do I\n bake?"), talk("How  do I bake? ", "Mix.", "Then?")) == 1


def test_a_turn_that_opens_many_conversations_does_not_tie_them() -> None:
    greetings = [talk("Hi", "Hello!", f"Question {number}?") for number in range(MANY)]
    assert count(*greetings) == 1
    one_more = talk("Hi", "Hello!", "Another?")
    assert count(*greetings, one_more) == MANY + 1
    deeper = talk("Hi", "Hello!", "Another?", "Yes.", "Why?")
    assert count(*greetings, one_more, deeper) == MANY + 1


def test_two_turns_that_open_many_conversations_do_not_tie_them() -> None:
    more = [talk("Hi", "Hello!", "How are you?", "Well.", f"Question {number}?") for number in range(MANY + 1)]
    other = [talk("Hi", "Hello!", f"Other {number}?") for number in range(MANY)]
    assert count(*more, *other) == 2 * MANY + 1


def test_the_order_of_the_prompts_does_not_matter() -> None:
    prompts = [talk("Hi", "Hello!", f"Question {number}?") for number in range(MANY + 5)] + [talk("Hi"), talk("Bye")]
    assert conversations(prompts) == conversations(reversed(prompts))


def test_a_system_turn_alone_does_not_tie_conversations_that_the_assistant_opens() -> None:
    def opened(number: int) -> str:
        return f"\n\nSystem: Be kind.\n\nAssistant: Hello!\n\nHuman: Question {number}?\n\nAssistant:"

    assert count(*map(opened, range(MANY + 1))) == MANY + 1


def test_a_question_about_another_text_is_another_conversation() -> None:
    assert count(*(f"\n\nSystem: Text {number}.\n\nHuman: Sum it up.\n\nAssistant:" for number in range(3))) == 3
