//! The words that fill slots. They are few, so that most of them become one token.

/// Somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Person {
    /// The first name.
    pub(super) name: &'static str,
    /// She, not he.
    pub(super) she: bool,
}

const fn she(name: &'static str) -> Person {
    Person { name, she: true }
}

const fn he(name: &'static str) -> Person {
    Person { name, she: false }
}

impl Person {
    /// `she` or `he`.
    pub(super) fn subject(self) -> &'static str {
        if self.she { "she" } else { "he" }
    }

    /// `She` or `He`.
    pub(super) fn capital_subject(self) -> &'static str {
        if self.she { "She" } else { "He" }
    }

    /// `her` or `him`.
    pub(super) fn object(self) -> &'static str {
        if self.she { "her" } else { "him" }
    }
}

/// People.
pub(super) const PEOPLE: &[Person] = &[
    she("Anna"),
    he("Ben"),
    he("Carl"),
    she("Dana"),
    she("Emma"),
    he("Finn"),
    she("Gina"),
    he("Hugo"),
    she("Ida"),
    he("Jack"),
    she("Lena"),
    he("Max"),
    she("Nina"),
    he("Omar"),
    he("Paul"),
    she("Rosa"),
    he("Sam"),
    she("Tina"),
    he("Tom"),
    she("Vera"),
    he("Leo"),
    she("Mia"),
    he("Noah"),
    she("Zoe"),
];

/// How things come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Picked and eaten.
    Fruit,
    /// Baked and eaten.
    Baked,
    /// Found and lost.
    Thing,
}

/// Things that one counts, in the plural.
pub(super) const ITEMS: &[(&str, Class)] = &[
    ("apples", Class::Fruit),
    ("pears", Class::Fruit),
    ("plums", Class::Fruit),
    ("nuts", Class::Fruit),
    ("cookies", Class::Baked),
    ("cakes", Class::Baked),
    ("rolls", Class::Baked),
    ("books", Class::Thing),
    ("cards", Class::Thing),
    ("pens", Class::Thing),
    ("stamps", Class::Thing),
    ("coins", Class::Thing),
    ("shells", Class::Thing),
    ("toys", Class::Thing),
    ("balls", Class::Thing),
    ("cups", Class::Thing),
];

/// Things that shops sell, in the plural.
pub(super) const GOODS: &[&str] =
    &["lamps", "chairs", "tables", "books", "cups", "pens", "toys", "bags", "shoes", "phones", "clocks", "hats"];

/// Boxes and the like, in the plural.
pub(super) const BOXES: &[&str] = &["boxes", "bags", "baskets", "jars"];

/// Cities.
pub(super) const CITIES: &[&str] =
    &["Oslo", "Rome", "Paris", "Berlin", "London", "Madrid", "Vienna", "Cairo", "Lima", "Tokyo", "Boston", "Delhi"];

/// Days of the week.
pub(super) const DAYS: &[&str] = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Colours.
pub(super) const COLORS: &[&str] = &["red", "blue", "green", "white", "black", "yellow", "brown", "gray"];

/// What people do for a living.
pub(super) const JOBS: &[&str] =
    &["teacher", "baker", "nurse", "driver", "painter", "farmer", "doctor", "cook", "pilot", "lawyer"];

/// Animals at home.
pub(super) const PETS: &[&str] = &["cat", "dog", "rabbit", "horse", "bird", "turtle"];

/// Names of animals.
pub(super) const PET_NAMES: &[&str] = &["Bella", "Rex", "Luna", "Rocky", "Coco", "Milo", "Daisy", "Oscar"];

/// What meetings and books are about.
pub(super) const SUBJECTS: &[&str] =
    &["history", "music", "art", "sports", "travel", "food", "science", "law", "health", "money", "trade", "safety"];

/// Weather, as an adjective.
pub(super) const SKIES: &[&str] = &["sunny", "cloudy", "rainy", "windy", "foggy", "snowy"];

/// Things to do.
pub(super) const CHORES: &[&str] = &[
    "clean the room",
    "wash the car",
    "fix the lamp",
    "paint the door",
    "call the bank",
    "write the report",
    "feed the dog",
    "order the books",
    "check the lights",
    "plan the trip",
    "pay the bill",
    "print the cards",
];
