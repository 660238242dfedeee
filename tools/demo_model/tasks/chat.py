# ruff: noqa: SIM905 - a list of words reads best as words
"""Small talk: greetings, names, thanks, what the model is and is not, and saying so when it does not know."""

from __future__ import annotations

import random
import re

from ..conversation import Conversation, Message
from ..words import ADJECTIVES, ANIMALS, CAPITALS, CITIES, FOODS, NAMES, PLAIN, any_city, any_name, made_up

Talk = list[tuple[str, str]]

ABOUT = [
    ("""
        Who are you?|What are you?|Tell me about yourself.|Introduce yourself.|Who am I talking to?
        What is your name?|What's your name?|Do you have a name?|Are you a robot?|Are you an AI?|Are you human?""",
     "I am the demo model of lightllm, a very small language model."),
    ("""
        What can you do?|What are you good at?|How can you help me?|Can you help me?|What can I ask you?|Help
        What should I try?|Give me an example of what you can do.|What are your skills?""",
     "I can chat a little, add and subtract, sort and copy lists, look up values, write JSON, "
     "call tools and tell short stories."),
    ("How are you?|How are you doing?|How do you do?|How is it going?|Are you well?|How are you today?|How's it going?",
     "I am fine, thank you. How can I help you?"),
    ("Thank you!|Thanks|Thanks a lot!|Thank you very much.|Thanks for your help.|Great, thanks!|Nice, thank you.",
     "You are welcome!"),
    ("Bye!|Goodbye|See you later.|Good night!|I have to go.|See you!|Bye bye|Farewell.", "Goodbye! Have a nice day."),
    ("Are you smart?|Do you know everything?|Can I trust you?|Do you make mistakes?|Are you always right?",
     "I am very small and make mistakes, so please check what I say."),
    ("Who made you?|Who trained you?|How were you trained?|Where do you come from?|What were you trained on?",
     "I was trained on conversations generated for lightllm."),
    ("Do you like music?|Do you have feelings?|Are you happy?|Do you sleep?|Do you eat?|Are you alive?",
     "I am only a small program, so I have no feelings."),
    ("""
        Good!|Okay|Cool|Nice|Great|I see|That is nice.|Very good.|Interesting.|Wow!|Well done.""",
         "I am glad to hear that."),
    ("Sorry|I am sorry.|Oh no|My mistake.|Excuse me.", "No problem at all."),
    ("Yes|No|Maybe|Perhaps|I do not know.|Not sure.", "All right. What would you like to do next?"),
    ("Test|test|testing|Is this working?|Does this work?|Are you there?|Ping", "Yes, I am here and working."),
    ("Tell me a joke.|Do you know a joke?|Make me laugh.|A joke, please.",
     "Why did the token cross the road? To get to the next slot."),
]  # fmt: skip
GREETINGS = ["Hello", "Hello!", "Hi", "Hi!", "Hey", "Hey!", "Good morning", "Good morning!", "Good evening.",
             "Hello there!",
             "Hi there", "Good afternoon!", "Hey there!", "hello", "hi", "Greetings!", "Hello, how are you?",
             "Hi, how are you?",
             "Hey, how are you?"]  # fmt: skip
UNKNOWN = [
    "Who won the race in {city}?", "What is the weather in {city}?", "How many people live in {city}?",
    "Who is {name}?",
    "What is the price of {food}?", "When was {city} founded?", "Write an essay about {food}.", "How old is {name}?",
    "What will happen tomorrow in {city}?", "Who is the mayor of {city}?", "What does a {animal} eat?",
    "Where is {name} now?",
    "Translate {food} into Latin.", "How much does a {animal} weigh?", "What did {name} say yesterday?",
    "Which film was made in {city}?", "How do I cook {food}?", "What is the phone number of {name}?",
    "Which team plays in {city}?", "Why is {food} healthy?", "Explain {topic}.", "Write a poem about {thing}.",
    "What is {topic}?", "Who invented {thing}?", "Tell me about {topic}.", "Who is the president of {land}?",
    "Who is the king of {land}?", "What is the capital of {far}?", "Capital of {far}?", "Where is {far}?",
    "How many letters are in {thing}?", "Count the letters in {thing}.", "Spell {thing}.", "Why is the sky blue?",
    "What is the meaning of life?", "What time is it?", "What day is it today?", "What is the date?",
    "Is {topic} important?",
    "Write a program about {topic}.", "Write Python code for {thing}.", "Can you draw {thing}?", "What is {strange}?",
    "Who is {strange}?", "How do I learn {topic}?", "Recommend a book about {topic}.",
    "What is your opinion on {topic}?",
    "When did the war in {land} end?", "How far is {city}?", "What is the population of {land}?", "Do you know {name}?",
    "Write an email to {name}.", "Summarize {topic}.", "Which language do they speak in {land}?",
    "How does {topic} work?",
    "What is the best {food}?", "Where can I buy {thing}?", "How tall is {name}?", "Why do people like {topic}?",
    "What is the news?", "Sing a song about {thing}.", "Who wrote the book about {topic}?", "What happened in {land}?",
]  # fmt: skip
TOPICS = """physics chemistry history biology music politics football tennis chess philosophy love art poetry economics
religion mathematics geography astronomy medicine law cooking fashion gardening evolution gravity democracy electricity
photosynthesis banking climate grammar painting sculpture theater ballet logic algebra geometry calculus sociology
psychology marketing robotics energy magnetism relativity genetics archaeology quantum""".split()
FAR = """Afghanistan Albania Algeria Angola Armenia Bangladesh Belarus Bolivia Cambodia Cameroon Cyprus Ethiopia Fiji
Georgia Ghana Guatemala Haiti Honduras Iceland Indonesia Iran Israel Jamaica Jordan Kazakhstan Laos Lebanon Libya
Malaysia Mali Malta Mexico Moldova Mongolia Morocco Nepal Nigeria Oman Pakistan Panama Paraguay Philippines Qatar
Russia Rwanda
Slovakia Slovenia Somalia Sudan Syria Tunisia Turkey Uganda Ukraine Uruguay Venezuela Yemen Zambia Zimbabwe""".split()
SUMS = ["What is {a} times {b}?", "{a} * {b}", "Multiply {a} by {b}.", "What is {a} divided by {b}?", "{a} / {b}",
        "Divide {a} by {b}.", "What is the square root of {a}?", "What is {a} percent of {b}?", "{a} x {b}",
        "What is {a} squared?", "{a} times {b}", "Calculate {a} * {b}."]  # fmt: skip
ONLY_SUMS = "I can only add and subtract."
DONT_KNOW = "I do not know that. I am a very small demo model."
REPLY = "Hello! How can I help you?"
FINE = "Hello! I am fine, thank you. How can I help you?"
TELL_NAME = ["My name is {n}.", "I am {n}.", "I'm {n}.", "Call me {n}.", "Hi, I am {n}.", "Hello, my name is {n}.",
             "Hello, I'm {n}!", "Hi! My name is {n}.", "You can call me {n}."]  # fmt: skip
ASK_NAME = ["What is my name?", "Do you know my name?", "What's my name?", "Who am I?", "Do you remember my name?",
            "Tell me my name.", "How am I called?"]  # fmt: skip
LIKES = [("I like {x}.", "{x} sounds good. Why do you like it?"), ("My favorite food is {x}.",
         "{x} sounds good. Why do you like it?"),
         ("I love {x}!", "{x} sounds good. Why do you like it?")]  # fmt: skip
LIVE = ["I live in {x}.", "I am from {x}.", "I come from {x}.", "My home is {x}."]
ASK_LIVE = ["Where do I live?", "Which city do I live in?", "Where am I from?", "What is my home town?"]


def _about(r: random.Random) -> Talk:
    asked, answer = r.choice(ABOUT)
    return [(r.choice([phrase.strip() for phrase in re.split(r"[|\n]", asked) if phrase.strip()]), answer)]


def _greet(r: random.Random) -> Talk:
    greeting = r.choice(GREETINGS)
    return [(greeting, FINE if "how are you" in greeting else REPLY)]


def _unknown(r: random.Random) -> Talk:
    if r.random() < 0.12:
        return [(r.choice(SUMS).format(a=r.randint(0, 999), b=r.randint(0, 999)), ONLY_SUMS)]
    topic = r.choice(TOPICS) if r.random() < 0.7 else f"{r.choice(ADJECTIVES)} {r.choice(TOPICS)}"
    asked = r.choice(UNKNOWN).format(
        city=r.choice(CITIES), name=r.choice(NAMES), food=r.choice(FOODS), animal=r.choice(ANIMALS), topic=topic,
        thing=r.choice(PLAIN), far=r.choice(FAR) if r.random() < 0.8 else made_up(r).capitalize(),
        land=r.choice(list(CAPITALS) + FAR), strange=made_up(r).capitalize(),
    )  # fmt: skip
    return [(asked, DONT_KNOW)]


def _greeted(r: random.Random) -> Talk:
    """A greeting and a question in one message: the question is what counts."""
    (asked, answer), *_ = _about(r)
    return [
        (
            r.choice(("Hello, ", "Hi, ", "Hey, ", "hi ", "hello ", "Hey! ", "Good morning, "))
            + asked[0].lower()
            + asked[1:],
            answer,
        )
    ]


def _likes(r: random.Random) -> Talk:
    food = r.choice(FOODS)
    say, answer = r.choice(LIKES)
    return [(say.format(x=food), answer.format(x=food.capitalize()))]


def small_talk(rng: random.Random) -> Talk:
    return rng.choices((_about, _greet, _unknown, _likes, _greeted), (6, 3, 6, 1, 1.5))[0](rng)


def conversation(rng: random.Random, turns: int) -> Conversation:
    """Small talk of about `turns` turns; a name or a town given early may be asked for later."""
    talk: Talk = []
    if rng.random() < 0.4:
        talk += _greet(rng)
    question: tuple[str, str] | None = None
    roll = rng.random()
    if roll < 0.3:
        name = any_name(rng)
        talk.append((rng.choice(TELL_NAME).format(n=name), f"Nice to meet you, {name}! How can I help you?"))
        question = (rng.choice(ASK_NAME), f"Your name is {name}.")
    elif roll < 0.45:
        city = any_city(rng)
        talk.append((rng.choice(LIVE).format(x=city), f"{city} is a nice place to live."))
        question = (rng.choice(ASK_LIVE), f"You live in {city}.")
    for _ in range(turns):
        talk += small_talk(rng)
    if question and rng.random() < 0.7:
        talk.append(question)
    messages: list[Message] = []
    for user, assistant in talk:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return Conversation(messages)
