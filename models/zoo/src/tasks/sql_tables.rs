//! Tables that queries ask about.

use super::words::{CITIES, COLORS, DAYS, JOBS, PETS, SUBJECTS};

/// What a column holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// A label that nothing is compared with.
    Label,
    /// One of the list.
    Word(&'static [&'static str]),
    /// A whole number, `base` and 1 to `count` times `step`.
    Number {
        /// What the steps are added to.
        base: i64,
        /// The distance of values.
        step: i64,
        /// How many values there are.
        count: i64,
    },
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// The name.
    pub(super) name: &'static str,
    /// What it holds.
    pub(super) kind: Kind,
}

/// A table with the columns that it may have; the first is always there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    /// The name, a plural.
    pub(super) name: &'static str,
    /// The columns.
    pub(super) columns: &'static [Column],
}

const fn word(name: &'static str, list: &'static [&'static str]) -> Column {
    Column { name, kind: Kind::Word(list) }
}

const fn number(name: &'static str, step: i64, count: i64) -> Column {
    Column { name, kind: Kind::Number { base: 0, step, count } }
}

const NAME: Column = Column { name: "name", kind: Kind::Label };
const TITLE: Column = Column { name: "title", kind: Kind::Label };
const CITY: Column = word("city", CITIES);
const COLOR: Column = word("color", COLORS);
const DAY: Column = word("day", DAYS);
const JOB: Column = word("job", JOBS);
const TOPIC: Column = word("topic", SUBJECTS);
const KIND: Column = word("kind", PETS);
const AGE: Column = number("age", 1, 90);
const PAY: Column = number("pay", 100, 90);
const PRICE: Column = number("price", 5, 60);
const YEAR: Column = Column { name: "year", kind: Kind::Number { base: 1980, step: 1, count: 44 } };
const PAGES: Column = number("pages", 10, 60);
const SIZE: Column = number("size", 1, 60);
const WEIGHT: Column = number("weight", 1, 90);
const RATING: Column = number("rating", 1, 10);
const HOURS: Column = number("hours", 1, 40);
const SEATS: Column = number("seats", 10, 40);
const POINTS: Column = number("points", 1, 99);
const STOCK: Column = number("stock", 5, 60);
const KIND_OF_GAME: Column = word("kind", &["card", "ball", "word", "board"]);
const SEATS_OF_CAR: Column = number("seats", 1, 9);
const ROOMS: Column = number("rooms", 1, 90);

/// All tables.
pub(super) const TABLES: &[Table] = &[
    Table { name: "staff", columns: &[NAME, CITY, JOB, PAY, AGE, HOURS] },
    Table { name: "students", columns: &[NAME, CITY, AGE, TOPIC, POINTS, YEAR] },
    Table { name: "teachers", columns: &[NAME, TOPIC, CITY, PAY, AGE, HOURS] },
    Table { name: "customers", columns: &[NAME, CITY, AGE, POINTS, JOB, YEAR] },
    Table { name: "players", columns: &[NAME, CITY, AGE, POINTS, PAY, WEIGHT] },
    Table { name: "books", columns: &[TITLE, TOPIC, PAGES, PRICE, YEAR, STOCK, RATING] },
    Table { name: "films", columns: &[TITLE, TOPIC, YEAR, RATING, HOURS, PRICE] },
    Table { name: "songs", columns: &[TITLE, TOPIC, YEAR, RATING, POINTS, PRICE] },
    Table { name: "games", columns: &[TITLE, KIND_OF_GAME, PRICE, YEAR, RATING, HOURS] },
    Table { name: "cars", columns: &[NAME, COLOR, PRICE, YEAR, SEATS_OF_CAR, WEIGHT, CITY] },
    Table { name: "pets", columns: &[NAME, KIND, AGE, WEIGHT, COLOR, PRICE] },
    Table { name: "hotels", columns: &[NAME, CITY, PRICE, RATING, ROOMS, YEAR] },
    Table { name: "shops", columns: &[NAME, CITY, SIZE, RATING, HOURS, YEAR] },
    Table { name: "schools", columns: &[NAME, CITY, SIZE, YEAR, ROOMS, POINTS] },
    Table { name: "products", columns: &[NAME, COLOR, PRICE, STOCK, WEIGHT, RATING, SIZE] },
    Table { name: "chairs", columns: &[NAME, COLOR, PRICE, STOCK, WEIGHT, SIZE] },
    Table { name: "flights", columns: &[NAME, CITY, DAY, PRICE, SEATS, HOURS] },
    Table { name: "trips", columns: &[TITLE, CITY, DAY, PRICE, HOURS, RATING] },
    Table { name: "meetings", columns: &[TITLE, DAY, TOPIC, HOURS, CITY, SIZE] },
    Table { name: "courses", columns: &[TITLE, TOPIC, DAY, HOURS, PRICE, SEATS] },
];
