# ruff: noqa: SIM905 - a list of words reads best as words
"""Word lists for the generator. Knows words only, nothing of tasks.

Every list is written by hand for this project; the order is fixed, so a seed means the same data everywhere.
"""

from __future__ import annotations

import random

ANIMALS = """ant badger bat bear beaver bee bison camel cat cheetah cobra cow crab crane crow deer dog dolphin donkey
duck eagle eel elephant elk falcon ferret finch fox frog gecko giraffe goat goose gorilla hamster hare hawk hedgehog
heron horse hyena jackal jaguar koala lemur leopard lion lizard llama lobster lynx magpie mole monkey moose moth mouse
newt octopus otter owl ox panda panther parrot pelican penguin pig pigeon puma quail rabbit raccoon raven rhino robin
salmon seal shark sheep shrimp skunk sloth snail snake sparrow spider squid squirrel stork swan tiger toad trout turkey
turtle viper walrus wasp weasel whale wolf wombat wren yak zebra""".split()

FRUITS = """apple apricot avocado banana blackberry cherry coconut cranberry currant date fig grape guava kiwi lemon
lime mango melon nectarine olive orange papaya peach pear pineapple plum pomegranate quince raspberry
strawberry""".split()

FOODS = """bagel basil bean beet bread broccoli butter cabbage cake carrot celery cheese chili cookie corn cucumber
garlic ginger honey jam kale leek lentil lettuce mint muffin mushroom mustard noodle nut oat onion pasta pea pepper
pie pizza potato pumpkin radish rice salad salt soup spinach squash sugar toast tofu tomato turnip waffle walnut
yogurt""".split()

OBJECTS = """anchor arrow basket bell belt blanket boat book bottle bowl box brick bridge broom brush bucket button
cable camera candle canvas card carpet chain chair clock coat coin compass cup curtain desk dish door drum engine
fan feather fence flag flute fork frame gate glass glove guitar hammer harp hat helmet hook jar jug kettle key kite
knife ladder lamp lantern lens letter lock magnet map mask mirror nail needle net notebook oven paint paper pen pencil
phone piano pillow pin pipe plate pot purse quilt radio ring robot rocket rope rug ruler saddle sail saw scarf screw
shelf shell ship shirt shoe shovel spoon stamp stove string sword table tent thread ticket tool torch towel toy train
tray trumpet tube umbrella vase violin wagon wallet watch wheel whistle window wire zipper""".split()

NATURE = """beach bush canyon cave cliff cloud coral creek desert dune dust earth ember field fire flower fog forest
frost garden grass grove hail harbor hill ice island jungle lake leaf meadow mist moon moss mountain mud oak ocean
peak pebble pine planet plain pond rain reef ridge river rock root rose sand sea seed sky snow spring star stone storm
stream summit sun swamp thunder tide tree tulip valley volcano wave willow wind""".split()

COLORS = """amber black blue bronze brown coral crimson cyan gold gray green indigo ivory jade lilac magenta maroon
navy ochre olive orange pink plum purple red ruby rust sapphire scarlet silver tan teal turquoise violet white
yellow""".split()

ADJECTIVES = """bold brave bright brisk broad busy calm careful cheerful clean clever cold cool cosy curious dark deep
dry early eager fair fancy fast fine firm flat fond free fresh friendly full funny gentle glad golden grand great happy
hard heavy hidden high hollow honest hot huge humble hungry idle keen kind large late lazy light little lively lonely
long loud lucky merry mild modest narrow neat new noble odd old patient plain polite proud pure quick quiet rapid rare
ready rich round royal sharp shiny short shy silent simple slow small smart smooth soft solid steady strong sunny sweet
swift tall tender thick thin tidy tiny warm wide wild wise young""".split()

NAMES = [
    *"""Ada Adam Aisha Alan Alice Amir Ana Anders Anna Anton Ben Bella Boris Carla Carlos Cora Dan Dana David Diana Dora
    Elena Eli Ella Emil Emma Eric Eva Fatima Felix Fiona Frank Freya George Grace Greta Hana Hans Hugo Ida
    Igor""".split(),
    "Ines",  # codespell:ignore
    *"""Iris Ivan Ivy Jack Jade James Jan Jana Jonas Julia Karim Kate Keiko Kenji Kira Lara Leo Lena Liam Lily Lin Lucas
    Lucy Luis Maja Marco Maria Mark Marta Max Maya Mei Mia Mila Mina Nadia Nina Noah Nora Olga Oliver Omar Oscar
    Otto Paul Petra Pia Priya Rafael Ravi Rita Robin Rosa Ruth Sam Sara Simon Sofia Stefan Tara Theo Tim Tina Tom
    Uma Vera Victor Viola Wanda Will Yara Yuki Zara Zoe""".split(),
]

SURNAMES = """Adler Alvarez Baker Bauer Bell Berg Blake Brandt Brooks Carter Chen Cole Costa Cruz Dahl Diaz Dubois
Evans Fischer Ford Foster Garcia Grant Gray Green Gupta Hall Hansen Hayes Hill Holm Hunt Ito Jensen Jones Kaya Keller
Khan Kim Klein Kowal Lang Larsen Lee Lopez Marsh Martin Mendez Meyer Moreau Mori Nagy Novak Okoye Olsen Ortiz Park Patel
Perez Petrov Quinn Ramos Reed Rivera Rossi Roy Sato Schmidt Shaw Silva Singh Stone Tanaka Torres Vega Wagner Walker
Wang Weber West Wolf Wood Yang Young Zhang""".split()

CITIES = """Amsterdam Athens Auckland Baghdad Bangkok Barcelona Beijing Belgrade Berlin Bern Bogota Boston Brussels
Bucharest Budapest Cairo Calgary Chicago Copenhagen Dakar Delhi Denver Dhaka Dublin Geneva Hanoi Havana Helsinki
Istanbul Jakarta Kyoto Lagos Lima Lisbon London Lyon Madrid Manila Melbourne Miami Milan Montreal Moscow Mumbai
Munich Nairobi
Naples Osaka Oslo Ottawa Paris Porto Prague Quito Riga Rome Santiago Seattle Seoul Shanghai Singapore Sofia Stockholm
Sydney Tallinn Tokyo Toronto Tunis Turin Valencia Vienna Vilnius Warsaw Zagreb Zurich""".split()

CAPITALS = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna", "Belgium": "Brussels",
    "Brazil": "Brasilia", "Bulgaria": "Sofia", "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing",
    "Colombia": "Bogota", "Croatia": "Zagreb", "Cuba": "Havana", "Denmark": "Copenhagen", "Ecuador": "Quito",
    "Egypt": "Cairo", "Estonia": "Tallinn", "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin",
    "Greece": "Athens", "Hungary": "Budapest", "India": "Delhi", "Iraq": "Baghdad", "Ireland": "Dublin",
    "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Latvia": "Riga", "Lithuania": "Vilnius",
    "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Romania": "Bucharest",
    "Senegal": "Dakar", "Serbia": "Belgrade", "Spain": "Madrid", "Sweden": "Stockholm",
    "Switzerland": "Bern", "Thailand": "Bangkok", "Vietnam": "Hanoi",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "cold": "hot", "big": "small", "small": "big", "tall": "short", "fast": "slow", "slow": "fast",
    "early": "late", "late": "early", "light": "dark", "dark": "light", "open": "closed", "full": "empty",
    "empty": "full", "hard": "soft", "soft": "hard", "happy": "sad", "sad": "happy", "old": "new", "new": "old",
    "left": "right", "right": "left", "up": "down", "down": "up", "in": "out", "loud": "quiet", "quiet": "loud",
    "wet": "dry", "dry": "wet", "rich": "poor", "strong": "weak", "weak": "strong", "clean": "dirty",
    "thick": "thin", "wide": "narrow", "day": "night", "night": "day", "first": "last", "true": "false",
}  # fmt: skip

THING_COLORS = {
    "the sky on a clear day": "blue", "fresh grass": "green", "a ripe banana": "yellow", "fresh snow": "white",
    "a ripe tomato": "red", "coal": "black", "a carrot": "orange", "milk": "white", "an emerald": "green",
    "a ruby": "red", "a lemon": "yellow", "chocolate": "brown", "a raven": "black", "a flamingo": "pink",
}  # fmt: skip

ROOMS = """attic basement bathroom bedroom cellar classroom corridor garage gym hall hallway kitchen library lobby loft
lounge nursery office pantry playroom porch stairway studio study terrace workshop""".split()
GENRES = """ambient blues classical country dance disco folk funk gospel house jazz latin metal opera pop punk reggae
rock samba soul swing tango techno trance waltz""".split()
LANGUAGES = """Arabic Bulgarian Chinese Croatian Czech Danish Dutch English Finnish French German Greek Hindi Hungarian
Icelandic Irish Italian Japanese Korean Latin Norwegian Polish Portuguese Romanian Russian Spanish Swedish Thai Turkish
Ukrainian""".split()
STARTS = "b d f g h j k l m n p r s t v w z br ch dr fl gr kl kr pl sh sk st th tr".split()
MIDDLES = "a e i o u ai ea ee ia oo".split()
ENDS = ["", "", "", "n", "r", "s", "t", "l", "m", "x", "nd", "rk"]  # codespell:ignore

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = """January February March April May June July August September October November December""".split()

PLAIN = sorted({*ANIMALS, *FRUITS, *FOODS, *OBJECTS, *NATURE, *COLORS})
ALL_WORDS = sorted({*PLAIN, *ADJECTIVES})


def made_up(rng: random.Random) -> str:
    """A word nobody wrote down, so that copying is learned and not a vocabulary: "brovan", "kleamox"."""
    return "".join(rng.choice(STARTS) + rng.choice(MIDDLES) + rng.choice(ENDS) for _ in range(rng.randint(2, 3)))


def any_name(rng: random.Random) -> str:
    """A first name; one in eight is made up."""
    return made_up(rng).capitalize() if rng.random() < 0.125 else rng.choice(NAMES)


def any_city(rng: random.Random) -> str:
    """A city; one in eight is made up."""
    return made_up(rng).capitalize() if rng.random() < 0.125 else rng.choice(CITIES)


def any_thing(rng: random.Random) -> str:
    """A thing or food; one in eight is made up."""
    return made_up(rng) if rng.random() < 0.125 else rng.choice(OBJECTS + FOODS)
