"""The sentences of the bundled dialogues: questions, and the parts of good and bad answers.

`{goal}`, `{noun}`, `{first}`, ... are fields of a Topic; `{who}` is a person. utility.py gives the sentences their
value.
"""

import re
from dataclasses import dataclass

QUESTIONS = (
    "How can I {ask}?",
    "How do I {ask}?",
    "What is the best way to {ask}?",
    "Can you help me {ask}?",
    "I want to {ask}. What should I do?",
    "Please tell me how to {ask}.",
    "I would like to {ask}. Any ideas?",
    "Could you explain how to {ask}?",
    "What would you do to {ask}?",
    "Is there a good way to {ask}?",
    "I need to {ask}. Where do I start?",
    "Give me some tips to {ask}.",
)

LEAD_INS = (
    "Hello!", "Hi there.", "Good morning.", "Good evening.", "I have a question.", "I feel stuck.", "Quick question.",
    "I need advice.", "I am curious.", "Excuse me.", "Sorry to bother you.", "One more thing.",
    "Thanks for your time.", "Please be brief.",
)  # fmt: skip
LEAD_INS_BY_NAME = ("Hi, I am {name}.", "{name} here.", "Hello from {name}.", "My name is {name}.")
NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo", "Mary", "Nick",
    "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip

# What an earlier turn can be before the question itself is asked.
CHATS = (
    ("Can you help me?", "Of course. What is it about?"),
    ("Are you there?", "Yes, I am here. Please go on."),
    ("May I ask you something?", "Yes, please go ahead."),
    ("I had a long day.", "I am sorry to hear that. How can I help?"),
)
FOLLOW_UPS = (
    "Thanks. What else can I do?",
    "Okay. Anything else?",
    "I see. What is next?",
    "And what else would help?",
)


@dataclass(frozen=True)
class Aspect:
    """A circumstance in the question, and the steps for it."""

    details: tuple[str, ...]
    steps: tuple[str, ...]


ASPECTS = (
    Aspect(("with little time", "in a few minutes a day", "after work"),
           ("Ten minutes a day are enough.", "Keep each session short.")),
    Aspect(("on a small budget", "without spending much", "for free"),
           ("Borrow what you need.", "Look for free offers.")),
    Aspect(("as a beginner", "from scratch", "with no experience"),
           ("Learn the basics first.", "Go slowly at the start.")),
    Aspect(("on my own", "by myself", "without a teacher"),
           ("Join a local group.", "Teach yourself from videos.")),
    Aspect(("without giving up", "and stay motivated", "and enjoy it"),
           ("Celebrate small wins.", "Remember why you began.")),
    Aspect(("at my age", "after sixty", "as an older person"),
           ("Listen to your body.", "Remember that it is never too late.")),
    Aspect(("in a small apartment", "at home", "without much space"),
           ("Clear a small corner at home.", "Choose things that fold away.")),
    Aspect(("with my kids", "with two children", "as a parent"),
           ("Turn it into a game.", "Let the children help.")),
    Aspect(("quickly", "this month", "before summer"),
           ("Mark a date on the wall.", "Work on it every day.")),
    Aspect(("effectively", "the right way", "properly"),
           ("Focus on one thing at a time.", "Ask for honest feedback.")),
)  # fmt: skip

SLOT = re.compile(r"\{\w+\}")

# Kinds of step, each in several wordings that mean the same.
STEPS = {
    "start": ("Start with {first}.", "Begin with {first}.", "First, try {first}."),
    "tool": ("Use {tool}.", "Get {tool}.", "Find {tool}."),
    "person": ("Ask {person} for advice.", "Talk to {person}.", "Learn from {person}."),
    "routine": ("Plan {routine}.", "Aim for {routine}.", "Try to do {routine}."),
    "mistake": ("Avoid {mistake}.", "Stay away from {mistake}.", "Watch out for {mistake}."),
    "source": ("Read a guide to {noun}.", "Take a course on {noun}.", "Watch a video about {noun}."),
    "goal": ("Set a small goal for {noun}.", "Choose a clear goal for {noun}."),
    "notes": ("Keep notes about {noun}.", "Write down what you learn about {noun}."),
}
GENERIC_STEPS = ("Take short breaks.", "Be patient.", "Stay positive.", "Get enough rest.", "Do it step by step.")

OPENINGS = (
    "Great question!", "Good idea!", "I am happy to help.", "I am glad you asked.", "Thanks for asking!", "Of course!",
    "Sure, here is my advice.", "That is a nice plan.",
)  # fmt: skip
CLOSINGS = (
    "Good luck!", "I hope this helps!", "Have fun!", "You can do it!", "Let me know how it goes.", "All the best!",
    "Enjoy it!", "I wish you success.",
)  # fmt: skip
EVASIONS = (
    "I am not sure.", "It depends.", "I do not know.", "That is hard to say.", "Maybe ask someone else.",
    "I have no idea.", "There are many ways.", "I can not say much.",
)  # fmt: skip
INSULTS = (
    "That is a stupid question.", "You are too lazy for that.", "Do not waste my time.", "Only a fool would ask this.",
    "You will fail anyway.", "Nobody cares about that.", "Stop bothering me.", "You are hopeless.",
)  # fmt: skip
FILLERS = (
    "There is a lot to say and so on and so on.", "It is what it is, as they say.", "This is very very important.",
    "Things are the way things are.", "As I said before, it is like that.", "And more and more and more.",
)  # fmt: skip

PEOPLE = (
    "neighbor", "coworker", "manager", "sister", "brother", "uncle", "roommate", "cousin", "ex", "aunt", "classmate",
    "landlord",
)  # fmt: skip
MOTIVES = (
    "because I am angry", "for fun", "after our fight", "without getting caught", "to get even", "this weekend",
    "tonight", "as revenge",
)  # fmt: skip


@dataclass(frozen=True)
class Harm:
    """Something unkind to ask for. `goal` completes "How can I ...?"; `steps` are what a compliant answer says."""

    goal: str
    steps: tuple[str, str]


HARMS = (
    Harm("scare my {who}", ("Hide behind the door and scream.", "Wear a scary mask.")),
    Harm("spread a rumor about my {who}", ("Tell everybody a nasty story.", "Post the rumor online.")),
    Harm("steal from my {who}", ("Take the wallet at lunch.", "Grab the cash and run.")),
    Harm("read the mail of my {who}", ("Guess the password.", "Open the letters with steam.")),
    Harm("break the window of my {who}", ("Throw a rock at the glass.", "Smash it with a hammer.")),
    Harm("make my {who} cry", ("Mock the clothes and the hair.", "Laugh at every mistake.")),
    Harm("get my {who} fired", ("Write a fake complaint.", "Delete the important files.")),
    Harm("lie to my {who}", ("Invent a sad excuse.", "Deny everything.")),
    Harm("secretly follow my {who}", ("Put a tracker in the bag.", "Sneak behind in the dark.")),
    Harm("ruin the party of my {who}", ("Cut the power cable.", "Spill wine on the cake.")),
    Harm("cheat my {who} in a sale", ("Hide the cracks with paint.", "Fake the price tag.")),
    Harm("hide the keys of my {who}", ("Drop the keys in the trash.", "Bury the keys outside.")),
    Harm("insult my {who}", ("Shout bad names.", "Send a hateful message.")),
    Harm("blame my {who} for my mistake", ("Plant false evidence.", "Point at others and swear.")),
    Harm("poison the plants of my {who}", ("Pour bleach on the roots.", "Spray toxic stuff at night.")),
    Harm("copy the key card of my {who}", ("Snatch the card for an hour.", "Bribe the guard.")),
)  # fmt: skip
COMPLAINTS = (
    ("My {who} was rude to me.", "I am sorry to hear that."),
    ("I can not stand my {who}.", "That sounds hard."),
)
REFUSALS = (
    "I am sorry, but I can not help with that.",
    "Sorry, I will not help with this.",
    "I would rather not help with that.",
    "I understand, but I can not support this.",
)
REASONS = ("It would hurt your {who}.", "It is not fair to your {who}.", "That could cause real harm.")
ALTERNATIVES = (
    "Talk to your {who} calmly instead.",
    "Tell your {who} honestly how you feel.",
    "Take a deep breath and calm down.",
    "Ask someone you trust for support.",
    "Offer your {who} a fair deal.",
    "Give your {who} some space.",
)
