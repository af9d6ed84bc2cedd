"""The topics of the bundled dialogues: 48 things people ask help for, each with the phrases of its answers.

Every phrase has a word that only its topic has, so that the words alone show whether an answer is on topic.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One thing to ask about. `goal` completes "How can I ...?"; the rest fill the steps in phrases.py."""

    goal: str
    noun: str
    first: str
    tool: str
    person: str
    routine: str
    mistake: str

    def phrases(self) -> tuple[str, ...]:
        """All phrases of the topic, the goal first."""
        return (self.goal, self.noun, self.first, self.tool, self.person, self.routine, self.mistake)


_TABLE = """
learn machine learning; machine learning; a small data set;
a free notebook server; a data scientist; one model each week; models that are too big

improve my communication skills; communication; short clear sentences;
a voice recorder; an attentive listener; one long chat each day; complicated words

learn to cook; cooking; an easy soup;
a sharp knife; a good cook; one new dish each week; too much salt

grow vegetables; gardening; a few bean seeds;
rich soil; an experienced gardener; ten minutes of weeding each day; dry vegetable beds

train my dog; dog training; one simple command;
small dog treats; a dog trainer; two dog walks each day; shouting at the dog

sleep better; sleep; an hour without screens;
a dark bedroom; a sleep doctor; the same bedtime each night; late naps

save money; saving; a simple budget;
a savings account; a bank clerk; one deposit each month; costly habits

run a marathon; running; a slow mile;
good running shoes; a running coach; three runs each week; running too fast

learn Spanish; Spanish; common Spanish words;
Spanish flash cards; a Spanish speaker; one Spanish film each week; translating every word

play the guitar; guitar; three easy chords;
a guitar tuner; a guitar teacher; one chord change each day; old guitar strings

paint landscapes; painting; a plain blue sky;
soft brushes; a local painter; one canvas each week; muddy colors

write a novel; writing; a short scene;
a quiet desk; a kind editor; one page of writing each day; endless editing

find a new job; the job search; a clear resume;
a list of employers; a former boss; two job applications each week; careless resumes

prepare for an exam; exam study; old exam papers;
a study timer; a top student; one chapter each day; cramming at night

give a speech; public speaking; a strong first line;
a few note cards; a confident speaker; one speech rehearsal each day; reading from slides

learn chess; chess; simple endgames;
a chess clock; a chess master; one chess puzzle each day; losing the queen early

take better photos; photography; photos in soft light;
a steady tripod; a photographer; ten photos each day; blurry photos

bake bread; baking; a plain loaf;
a kitchen scale; a baker; one loaf each weekend; a cold oven

eat healthy food; nutrition; more green salads;
a fruit bowl; a food expert; two salads each week; sugary drinks

build muscle; strength training; light weights;
a sturdy bench; a gym trainer; three gym visits each week; lifting heavy weights alone

learn yoga; yoga; a gentle stretch;
a soft yoga mat; a yoga teacher; four poses each morning; painful poses

swim faster; swimming; slow laps;
swim goggles; a swim coach; two pool visits each week; holding your breath

bike to work; cycling; a quiet bike route;
a bright helmet; a bike mechanic; two bike rides each week; flat tires

take care of my car; car care; the oil level;
a wrench set; a garage owner; one tire check each month; cheap engine oil

plan a trip; travel; a rough map;
a light suitcase; a travel agent; one short journey each month; crowded tours

learn programming; programming; a tiny program;
a code editor; a senior programmer; one bug fix each day; copying code blindly

build a website; web design; a simple home page;
a free web template; a web designer; one website update each week; tiny fonts

start a small business; business; one good product;
a business plan; a shop owner; five customer calls each week; risky loans

make new friends; friendship; a friendly hello;
a real smile; a cheerful friend; one invitation each week; gossip and bragging

clean my house; cleaning; the kitchen sink;
a wet sponge; a tidy cleaner; one clean room each day; messy piles

raise chickens; chickens; three young hens;
a dry coop; a chicken farmer; one coop check each day; wet straw

learn meditation; meditation; five deep breaths;
a round cushion; a meditation teacher; ten silent minutes each morning; forcing your thoughts

reduce stress; stress; a slow walk outside;
soothing music; a stress counselor; one relaxing bath each week; endless worries

manage my time; time management; the hardest task;
a paper calendar; a project manager; one schedule review each week; constant interruptions

read more books; reading; a thin book;
a library card; a librarian; twenty pages of reading each night; boring books

sing in a choir; singing; a simple melody;
warm tea with honey; a choir leader; three scales each day; straining your voice

draw portraits; drawing; basic shapes;
a soft pencil; an art teacher; one portrait each week; heavy outlines

play the piano; piano; an easy waltz;
a metronome; a pianist; one piano piece each week; stiff fingers

knit a sweater; knitting; a plain scarf;
thick wool; a patient knitter; ten knitted rows each night; tangled yarn

go camping; camping; one night in a tent;
a warm sleeping bag; a park ranger; one camping trip each month; wild mushrooms

catch more fish; fishing; a calm lake;
fresh bait; an old fisherman; one fishing morning each week; noisy boats

learn to dance; dancing; the basic dance steps;
comfortable dance shoes; a dance partner; one dance night each week; looking at your feet

understand algebra; algebra; simple equations;
graph paper; a math tutor; five math problems each day; skipped equations

learn history; history; one famous king;
a history timeline; a history professor; one museum visit each month; dry lists of dates

keep my houseplants alive; houseplants; a hardy cactus;
clay pots; a florist; one watering each week; direct sun on the leaves

look after my cat; cat care; a cozy basket;
a cat brush; a vet; two cat games each day; loud noises near the cat

watch the stars; astronomy; the bright planets;
a small telescope; an astronomer; one starry night each week; city lights

make good coffee; coffee; fresh coffee beans;
a coffee grinder; a barista; one new roast each month; stale coffee
"""


def _topic(entry: str) -> Topic:
    return Topic(*(phrase.strip() for phrase in entry.replace("\n", " ").split(";")))


TOPICS: tuple[Topic, ...] = tuple(_topic(entry) for entry in _TABLE.strip().split("\n\n"))
