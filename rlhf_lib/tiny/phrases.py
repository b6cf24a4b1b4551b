"""The words of TinyTLDR: names, relations and the phrase tables behind every sentence.

Slots: `{S}`/`{s}` the person as subject at the start of/inside a sentence ("My sister Anna" or "She"),
`{he} {him} {his}` pronouns, `{t}` the thing that a problem is about, `{rel}` the relation.
In every `post` list the *last* phrasing is kept for the test split: no training sees it, not even that of the base
model. So is the last of the `things` of a problem: its word is known from elsewhere, but no training sees it with
this problem. Many things go with several problems, so the thing alone does not tell the problem.
"""

# relation -> (group, gender or None when the name decides)
RELATIONS = {
    "sister": ("family", "f"), "brother": ("family", "m"), "mom": ("family", "f"), "dad": ("family", "m"),
    "cousin": ("family", None), "aunt": ("family", "f"), "uncle": ("family", "m"), "daughter": ("family", "f"),
    "son": ("family", "m"), "grandma": ("family", "f"), "grandpa": ("family", "m"), "nephew": ("family", "m"),
    "roommate": ("home", None), "neighbor": ("home", None), "landlord": ("home", None),
    "boss": ("work", None), "coworker": ("work", None), "manager": ("work", None),
    "girlfriend": ("love", "f"), "boyfriend": ("love", "m"), "wife": ("love", "f"), "husband": ("love", "m"),
    "classmate": ("school", None), "lab partner": ("school", None), "teacher": ("school", None),
    "best friend": ("friends", None), "friend": ("friends", None), "teammate": ("friends", None),
}  # fmt: skip

SUBREDDITS = {
    "family": ["family", "siblings", "relationships"],
    "home": ["roommates", "neighbors", "advice"],
    "work": ["work", "jobs", "advice"],
    "love": ["relationships", "dating", "advice"],
    "school": ["college", "school", "advice"],
    "friends": ["friendship", "relationships", "advice"],
}

WOMEN = """Anna Maria Laura Sofia Emma Julia Clara Nina Elena Sara Lucy Alice Grace Ruby Rosa Diana Carla Monica
Olivia Hannah Emily Chloe Zoe Mia Lily Ella Eva Ida Vera Nora Iris Tara Dana Gina Rita Lena Lisa Linda Karen Susan
Helen Irene Joyce Kelly Megan Molly Paula Robin Sandra Wendy Amber Bella Daisy Edith Fiona Greta Hazel Jane Kate
Naomi""".split()
MEN = """Tom Mark Paul Peter David Daniel James John Kevin Brian Eric Ryan Adam Alex Simon Oscar Leo Max Felix Hugo
Victor Martin Robert Richard Steven Thomas Frank Henry George Edward Arthur Albert Walter Ralph Roger Bruce Carl Craig
Dennis Derek Fred Gary Glenn Gordon Greg Harry Howard Ivan Jack Jacob Jason Jerry Juan Kyle Luke Marco Miguel Nathan
Omar Ray""".split()
# Names that among posts only those of the test split use (the base model has read them in its corpus, as GPT-2 has).
TEST_WOMEN = "Abigail Bianca Celeste Dolores Eleanor Freya Gwen Harriet Imelda Josephine Marlene Tabitha".split()
TEST_MEN = "Alfred Boris Conrad Dmitri Emilio Gareth Horace Isaac Leonard Magnus Rupert Warren".split()

# action -> things it is about, how a summary says it, how a post tells it (last one: test posts only)
PROBLEMS = {
    "borrow": dict(
        things=[
            "car",
            "bike",
            "laptop",
            "jacket",
            "camera",
            "guitar",
            "tent",
            "scooter",
            "charger",
            "umbrella",
            "blender",
            "drill",
            "lamp",
            "tablet",
        ],
        summary=["keeps borrowing my {t} without asking", "takes my {t} without asking"],
        post=[
            "{S} took my {t} again last week and never asked me first.",
            "Every few days my {t} is gone and it turns out that {s} has it.",
            "{S} thinks it is fine to use my {t} without a word.",
            "When I needed my {t} on Monday, {s} had already left with it.",
            "Again and again {s} just grabs my {t} and never asks me.",
        ],
    ),
    "break": dict(
        things=[
            "laptop",
            "phone",
            "camera",
            "guitar",
            "bike",
            "blender",
            "lamp",
            "tablet",
            "window",
            "drill",
            "car",
            "tent",
            "charger",
            "umbrella",
            "scooter",
        ],
        summary=["broke my {t} and will not pay for it", "broke my {t} and refuses to pay"],
        post=[
            "Last month {s} dropped my {t}, and now {he} says it is not {his} fault.",
            "{S} ruined my {t} at a party and will not give me a cent.",
            "My {t} is in pieces because of {him}. {S} says it was old anyway.",
            "{S} sat on my {t}. It is dead now and {he} will not buy a new one.",
            "{S} dropped my {t} at a party and will not buy a new one.",
        ],
    ),
    "eat": dict(
        things=[
            "lunch",
            "leftovers",
            "cereal",
            "cookies",
            "snacks",
            "yogurt",
            "pizza",
            "cheese",
            "bread",
            "fruit",
            "brunch",
        ],
        summary=["keeps eating my {t}", "eats my {t} all the time"],
        post=[
            "I put my {t} in the fridge and a day later {s} has finished it all.",
            "{S} helps {him}self to my {t} as if it were {his} own.",
            "I have not tasted my own {t} in weeks, because {s} gets there first.",
            "When I come home hungry, nothing is left of my {t} and {s} is full.",
            "Each time I open the fridge, {s} has finished my {t}.",
        ],
    ),
    "forget": dict(
        things=[
            "birthday",
            "graduation",
            "wedding",
            "concert",
            "recital",
            "surgery",
            "promotion",
            "race",
            "date",
            "visit",
            "trip",
            "game night",
            "speech",
        ],
        summary=["forgot my {t}", "completely forgot about my {t}"],
        post=[
            "My {t} was on Friday and {s} did not even call.",
            "{S} did not remember my {t}, not even after I told {him} twice.",
            "I waited all day on my {t}. There was no word from {him}, {s} had no idea.",
            "{S} made other plans on the day of my {t} because it slipped {his} mind.",
            "My {t} came and went and {s} did not remember it.",
        ],
    ),
    "unpaid": dict(
        things=[
            "rent",
            "gas bill",
            "phone bill",
            "water bill",
            "internet bill",
            "deposit",
            "loan",
            "repair",
            "trip",
            "pizza",
            "picnic",
            "wedding",
            "vacation",
        ],
        summary=["never pays {his} share of the {t}", "will not pay {his} share of the {t}"],
        post=[
            "I end up covering the {t} every time, because {s} is always broke.",
            "{S} owes me half of the {t} and has a new excuse each month.",
            "The {t} was due on the first and {s} gave me nothing.",
            "We agreed to split the {t}, but {s} has not paid for months.",
            "We agreed to split the {t} and {s} has a new excuse every time.",
        ],
    ),
    "noise": dict(
        things=[
            "drums",
            "trumpet",
            "loud music",
            "video games",
            "karaoke",
            "violin",
            "piano",
            "techno",
            "guitar",
        ],
        summary=["plays {t} late at night", "keeps me awake with {t}"],
        post=[
            "It is two in the morning and {s} starts with {t} again.",
            "I have not slept in a week because of {t}. {S} does not care about the hour.",
            "{S} loves {t}, and {he} loves it most when I am in bed.",
            "The walls are thin and {s} is into {t} until sunrise.",
            "The walls are thin and {s} starts with {t} when I am in bed.",
        ],
    ),
    "pet": dict(
        things=["cat", "parrot", "rabbit", "hamster", "snake", "turtle", "puppy", "dog"],
        summary=["leaves {his} {t} with me every weekend", "expects me to look after {his} {t}"],
        post=[
            "On Friday {s} drops {his} {t} at my door and drives off.",
            "{S} travels a lot and I am the one who feeds the {t}.",
            "I never wanted a {t}, yet {s} makes me walk in and clean up after it.",
            "Somehow the {t} of {his} lives at my place now, and {s} calls that a favor.",
            "{S} drops the {t} at my place and calls that a favor.",
        ],
    ),
    "mess": dict(
        things=[
            "dirty dishes",
            "wet towels",
            "pizza boxes",
            "muddy shoes",
            "old socks",
            "empty cans",
            "hair",
            "crumbs",
            "mail",
            "letters",
            "clothes",
            "snacks",
            "bread",
            "leftovers",
        ],
        summary=["leaves {t} everywhere", "never cleans up {his} {t}"],
        post=[
            "There are {t} in the kitchen, in the hall and on my chair. {S} just steps over it.",
            "{S} acts like {t} will vanish on their own.",
            "I cleaned up {t} three times this week, and none of it was mine. It was all from {him}, and {s} watched.",
            "You cannot walk through the room without stepping on {t}. {S} calls it cozy.",
            "You cannot see the kitchen for {t}, and {s} just steps over it.",
        ],
    ),
    "snoop": dict(
        things=[
            "diary",
            "messages",
            "emails",
            "mail",
            "letters",
            "notebook",
            "browser history",
            "chats",
            "essay",
            "code",
            "speech",
            "report",
        ],
        summary=["reads my {t} behind my back", "keeps snooping through my {t}"],
        post=[
            "I caught {him} with my {t} in hand. {S} said {he} was just curious.",
            "{S} knew things that only my {t} could have told {him}.",
            "Nothing is private. Yesterday {s} went through my {t} while I was in the shower.",
            "{S} quoted my own {t} back to me at dinner.",
            "While I was in the shower, {s} was just curious about my {t}.",
        ],
    ),
    "lie": dict(
        things=[
            "the money",
            "the trip",
            "an old debt",
            "the grades",
            "the accident",
            "the party",
            "a secret job",
            "the test",
            "the divorce",
        ],
        summary=["lied to me about {t}", "is hiding the truth about {t}"],
        post=[
            "I found out by chance that what {s} told me about {t} was made up.",
            "{S} looked me in the eye and gave me a fake story about {t}.",
            "For months {s} had me believe a story about {t} that never happened.",
            "Nothing that {s} said about {t} adds up.",
            "For months {s} told me a fake story about {t}.",
        ],
    ),
    "mock": dict(
        things=[
            "accent",
            "cooking",
            "clothes",
            "haircut",
            "singing",
            "height",
            "dancing",
            "art",
            "speech",
            "poster",
            "design",
            "diet",
            "essay",
        ],
        summary=["makes fun of my {t}", "keeps mocking my {t}"],
        post=[
            "At dinner {s} had the whole table laughing at my {t}.",
            "{S} has a new joke about my {t} every single day.",
            "{S} calls it teasing, but the comments about my {t} hurt.",
            "I cannot enter a room before {s} says something mean about my {t}.",
            "{S} says something mean about my {t} every single day.",
        ],
    ),
    "gossip": dict(
        things=[
            "salary",
            "divorce",
            "therapy",
            "crush",
            "diet",
            "illness",
            "exam results",
            "new job",
            "surgery",
            "messages",
            "emails",
            "haircut",
            "promotion",
            "diary",
        ],
        summary=["tells everyone about my {t}", "keeps gossiping about my {t}"],
        post=[
            "I told {him} about my {t} in private, and by Monday {s} had spread it all over town.",
            "People I barely know ask about my {t}, thanks to {him}. {S} cannot keep a secret.",
            "My {t} was supposed to stay between us, but {s} talks.",
            "{S} brought up my {t} in front of a room full of strangers.",
            "My {t} was supposed to stay private, but {s} had spread it all over town.",
        ],
    ),
    "credit": dict(
        things=[
            "report",
            "slides",
            "design",
            "recipe",
            "essay",
            "code",
            "poster",
            "speech",
            "notebook",
            "cooking",
            "art",
        ],
        summary=["takes credit for my {t}", "passed off my {t} as {his} own"],
        post=[
            "I worked on my {t} for weeks, and {s} put {his} name on it.",
            "{S} showed my {t} around and said that {he} had made it alone.",
            "Everyone praised {him} for my {t}. {S} smiled and never said whose it was.",
            "{S} copied my {t} and collected the applause.",
            "{S} showed my {t} around and never said whose it was.",
        ],
    ),
    "late": dict(
        things=[
            "dinners",
            "meetings",
            "practice",
            "study group",
            "movie nights",
            "calls",
            "lunches",
            "rehearsals",
            "game night",
            "brunch",
            "date",
            "video games",
        ],
        summary=["is always late for our {t}", "never shows up on time for our {t}"],
        post=[
            "I sit there alone for an hour before {s} arrives at our {t}.",
            "Our {t} start at six. {S} walks in at seven, every time.",
            "{S} has not once been there at the start of our {t}.",
            "The clock means nothing to {him}. {S} misses half of our {t} and smiles.",
            "I sit there alone for an hour, because {s} misses half of our {t}.",
        ],
    ),
    "cancel": dict(
        things=[
            "trip",
            "date",
            "picnic",
            "hike",
            "game night",
            "vacation",
            "brunch",
            "visit",
            "birthday",
            "wedding",
            "study group",
            "practice",
            "concert",
        ],
        summary=["keeps canceling our {t}", "canceled our {t} at the last minute"],
        post=[
            "Our {t} was planned for weeks, and an hour before, {s} backed out.",
            "I was already in the car when {s} wrote that our {t} was off.",
            "{S} called off our {t} again with some weak excuse.",
            "This was the third time that {s} did not come to our {t} after promising.",
            "An hour before our {t}, {s} backed out again with some weak excuse.",
        ],
    ),
    "smoke": dict(
        things=["kitchen", "car", "bedroom", "bathroom", "garage", "hallway", "basement", "office", "tent"],
        summary=["keeps smoking in my {t}", "smokes in my {t}"],
        post=[
            "My {t} smells like an ashtray, and {s} says it is only a few a day.",
            "{S} lights up in my {t} the moment I turn around.",
            "I find cigarette butts in my {t}. {S} does not even open a window.",
            "{S} has a cigarette in my {t} every morning and calls it fresh air.",
            "{S} lights up in my {t} every morning and does not even open a window.",
        ],
    ),
}

# what the writer tried -> how a summary says it ("I ..."), how a post tells it (last one: test posts only)
TRIED = {
    "talk": dict(
        summary=["talked to {him} about it", "talked it over with {him}"],
        post=[
            "I sat {him} down and talked for an hour.",
            "We talked it through on Sunday, very calmly.",
            "I talked about my feelings and {he} only nodded.",
            "On Sunday I sat {him} down and talked calmly.",
        ],
    ),
    "note": dict(
        summary=["left {him} a note", "wrote {him} a note"],
        post=[
            "There is a polite note on {his} desk from me.",
            "I taped a note to the fridge in big red letters.",
            "I put a note under {his} door.",
            "I taped a polite note to {his} door.",
        ],
    ),
    "help": dict(
        summary=["asked a friend for help", "got help from a friend"],
        post=[
            "I brought in a friend of ours for help.",
            "A mutual friend came to help and spoke with {him}.",
            "I begged for help, and a friend had a word with {him}.",
            "A friend of ours came to help and had a word with {him}.",
        ],
    ),
    "ignore": dict(
        summary=["tried to ignore it", "chose to ignore it"],
        post=[
            "For a while I looked away and did my best to ignore it all.",
            "I bit my tongue, because they say that you should ignore such things.",
            "I put on headphones and decided to ignore {him}.",
            "For a while I bit my tongue and did my best to ignore {him}.",
        ],
    ),
    "lock": dict(
        summary=["put a lock on my door", "bought a lock for my door"],
        post=[
            "There is a big lock on my room now and I keep the only key.",
            "I paid forty dollars for a lock.",
            "I went to the store and came back with a lock.",
            "I paid forty dollars for a big lock and keep the only key.",
        ],
    ),
    "yell": dict(
        summary=["yelled at {him}", "got angry and yelled at {him}"],
        post=[
            "Yesterday I snapped and yelled at the top of my lungs.",
            "I was so mad that I yelled for ten minutes.",
            "I yelled, and the whole street heard it.",
            "Yesterday I was so mad that I yelled and the whole street heard it.",
        ],
    ),
    "message": dict(
        summary=["sent {him} a long message", "wrote {him} a long message"],
        post=[
            "I typed a message of three screens on my phone.",
            "My message to {him} took me an hour.",
            "I put it all in a message, with examples.",
            "I typed it all in a message that took me an hour.",
        ],
    ),
    "money": dict(
        summary=["offered {him} money", "tried to solve it with money"],
        post=[
            "I put money on the table to make it stop.",
            "I said that there is money in it if this ends.",
            "I even waved some money around.",
            "I even put money on the table if this ends.",
        ],
    ),
    "deadline": dict(
        summary=["gave {him} a deadline", "set {him} a deadline"],
        post=[
            "I marked a deadline on the calendar and told {him} that is it.",
            "There was a deadline, the first of the month.",
            "{He} had two weeks from me, and the deadline is over.",
            "I told {him} that the deadline is the first of the month.",
        ],
    ),
    "same": dict(
        summary=["did the same to {him}", "paid {him} back the same way"],
        post=[
            "I got even and did the same for a few days.",
            "Two can play that game, so the same happened to {him}.",
            "I acted just the same way to teach {him} a lesson.",
            "To get even I acted the same way for a few days.",
        ],
    ),
    "rules": dict(
        summary=["made a list of rules", "set clear rules"],
        post=[
            "I printed a page of rules and hung it on the wall.",
            "We both signed five rules.",
            "I drew up rules for the two of us.",
            "I drew up five rules and hung them on the wall.",
        ],
    ),
    "gift": dict(
        summary=["bought {him} a gift", "got {him} a gift"],
        post=[
            "I thought that a gift would help, so I brought flowers.",
            "I baked a cake as a gift to show good will.",
            "A nice box of chocolates was my gift, as a hint.",
            "To show good will I brought flowers as a gift.",
        ],
    ),
    "silence": dict(
        summary=["met {him} with silence", "answered with silence"],
        post=[
            "{He} got nine days of silence from me.",
            "I leave the room and keep my silence.",
            "There has been silence between us ever since.",
            "I leave the room, and there has been silence for nine days.",
        ],
    ),
}

# question -> groups it fits (None: all), act as a summary says it, how a post tells it (last one: test posts only)
QUESTIONS = {
    "move_out": dict(
        groups=["home", "family", "love"],
        act="move out",
        post=[
            "Part of me wants to move to a flat of my own.",
            "I could pack my bags and move.",
            "I am ready to move away from this house.",
            "I am ready to pack my bags and move to a flat.",
        ],
    ),
    "break_up": dict(
        groups=["love"],
        act="break up with {him}",
        post=[
            "I wonder if it is time for a break up.",
            "I am close to a break up.",
            "My gut says to break up and never look back.",
            "My gut says that I am close to a break up.",
        ],
    ),
    "parents": dict(
        groups=["family", "school", "friends"],
        act="tell {his} parents",
        post=[
            "I think that {his} parents ought to know.",
            "I could call {his} parents.",
            "It might be good if the parents hear of this.",
            "It might be good to call the parents.",
        ],
    ),
    "police": dict(
        groups=["home", "friends"],
        act="call the police",
        post=[
            "I have the number of the police ready.",
            "I am about to get the police involved.",
            "Maybe a visit from the police would change things.",
            "Maybe I will get the police involved and things would change.",
        ],
    ),
    "quit": dict(
        groups=["work"],
        act="quit my job",
        post=[
            "I am tempted to quit and never come back.",
            "My letter is written and I could quit on Monday.",
            "Some days I just want to quit.",
            "Some days I am tempted to quit on Monday.",
        ],
    ),
    "hr": dict(
        groups=["work"],
        act="go to HR",
        post=[
            "The people from HR have an open door, they say.",
            "I could file a complaint with HR.",
            "There is a form for things like that at HR.",
            "I could file a form with the people from HR.",
        ],
    ),
    "holidays": dict(
        groups=["family", "love", "friends"],
        act="skip the holidays",
        post=[
            "I do not feel like coming home for the holidays.",
            "The holidays without {him} sound good right now.",
            "I might spend the holidays alone on a beach.",
            "I might not come home for the holidays.",
        ],
    ),
    "chance": dict(
        groups=None,
        act="give {him} one more chance",
        post=[
            "Maybe {he} deserves a chance, I do not want to be too hard.",
            "I am thinking about one last chance.",
            "My heart says that everyone gets a second chance.",
            "My heart says that {he} deserves one last chance.",
        ],
    ),
    "apologize": dict(
        groups=None,
        act="apologize first",
        post=[
            "Maybe it is on me to apologize and end this fight.",
            "I wonder if I am the one who has to apologize.",
            "I could swallow my pride and apologize.",
            "Maybe I am the one who has to swallow my pride and apologize.",
        ],
    ),
    "quiet": dict(
        groups=None,
        act="just keep quiet",
        post=[
            "Perhaps it is wiser to be quiet and live with it.",
            "I do not want drama, so maybe I stay quiet.",
            "Being quiet might be the price of peace.",
            "Perhaps I stay quiet and live with it.",
        ],
    ),
    "invoice": dict(
        groups=None,
        act="send {him} an invoice",
        post=[
            "I feel like an invoice for all the trouble is fair.",
            "I am tempted to write an invoice.",
            "An invoice might teach {him} a lesson.",
            "I am tempted to write an invoice for all the trouble.",
        ],
    ),
    "distance": dict(
        groups=None,
        act="keep my distance",
        post=[
            "I think that some distance would do me good.",
            "I need distance, maybe a month or two.",
            "More distance between us sounds right.",
            "More distance for a month or two would do me good.",
        ],
    ),
    "counselor": dict(
        groups=["love", "family", "work", "friends"],
        act="see a counselor with {him}",
        post=[
            "Maybe a counselor can help the two of us.",
            "A counselor might know what to do.",
            "I found a counselor who has time on Thursday.",
            "I found a counselor who might help the two of us.",
        ],
    ),
    "locks": dict(
        groups=["home", "family"],
        act="change the locks",
        post=[
            "New locks would solve it.",
            "I asked for the price of new locks.",
            "With other locks {he} could not get in anymore.",
            "I asked what other locks would cost.",
        ],
    ),
}

INTROS = [  # the person, when a sentence of its own introduces them; the last one: test posts only
    "I have a problem with my {rel} {name}.",
    "{name} is my {rel}, and we see each other every day.",
    "This is about my {rel}, {name}.",
    "My {rel} is called {name}.",
    "I need to vent about {name}, my {rel}.",
    "This is about {name}. {He} is my {rel}.",
]
ASK = [  # lead-ins that turn the thought of a QUESTION into a question; the last one: test posts only
    "{q} What do you think?",
    "{q} Is that too much?",
    "{q} Am I wrong?",
    "So here is my question. {q}",
    "{q} Would you do that?",
]
FAILS = [  # the outcome of what was tried, in posts
    "It did not help.", "{He} only laughed.", "Nothing changed.", "{He} did it again the next day.", "That lasted one day.",
]  # fmt: skip
SUMMARY_FAILS = ["it did not help", "nothing changed", "{he} did not listen"]

OPENERS = ["Throwaway account here.", "Sorry for the long post.", "English is not my first language.", "First post here.",
           "I am at the end of my rope."]  # fmt: skip
CLOSERS = ["Thanks for reading.", "Any advice is welcome.", "Please be kind.", "I am so tired."]
BACKGROUND = [
    "We have known each other for {n} years.", "I work nights at a bakery.", "I have a big exam next week.",
    "We live in a small town.", "I just started a new job.", "It has been raining all month.",
    "I am {age} and live near the beach.", "My back has been hurting too.", "We used to play chess every Sunday.",
    "I have a dog and a tiny garden.", "{He} once helped me move a sofa.", "My rent just went up again.",
    "We met at a summer camp.", "I am saving for a trip to Spain.",
]  # fmt: skip
# Other people: they have a name and a relation, and some an opinion. Tempting, and never the point.
BYSTANDERS = [
    "My {rel2} {name2} thinks that I am overreacting.",
    "My {rel2} {name2} finds it funny.",
    "My {rel2} {name2} went through the same thing last year.",
    "My {rel2} {name2} says that I should {act2}.",
    "My {rel2} {name2} told me to {act2}.",
    "If you ask my {rel2} {name2}, I should {act2}.",
]

TITLES = [
    "My {rel} and the {t}", "Need advice about my {rel}", "Trouble with my {rel} over the {t}",
    "I am fed up with my {rel}", "The {t} again", "How do I deal with my {rel}",
]  # fmt: skip

QUESTION_FRAMES = ["Should I {act}?", "Would it be wrong to {act}?", "Is it time to {act}?"]

CHATTER = [
    "It has been raining all month.", "What a game last night.", "Does anyone have a good soup recipe?",
    "I love this place.", "My train was late again.", "The new season is great so far.", "Mods, please pin this.",
    "Happy Friday everyone.", "Who else is up late?", "This is the way.", "I learned to bake bread this year.",
    "My cat knocked over the plant again.", "Is the gym open on Sunday?", "I finally finished that book.",
]  # fmt: skip
