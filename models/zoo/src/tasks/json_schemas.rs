//! The records that texts are turned into, and how their fields are told.

use super::words::{CHORES, CITIES, COLORS, DAYS, GOODS, JOBS, PET_NAMES, PETS, SKIES, SUBJECTS};

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// A first name; a record has one person.
    Person,
    /// One of the list.
    Word(&'static [&'static str]),
    /// A whole number from low to high, both inclusive.
    Number(i64, i64),
    /// True or false, each told by its own phrases.
    Flag {
        /// The sentences that say so.
        yes: &'static str,
        /// The sentences that say it is not so.
        no: &'static str,
    },
}

/// A field of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    /// The key, also the name of the slot.
    pub(super) key: &'static str,
    /// What it holds.
    pub(super) kind: Kind,
    /// The sentences that tell it; empty for a flag.
    pub(super) sentence: &'static str,
}

/// A kind of record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schema {
    /// What requests call it.
    pub(super) record: &'static str,
    /// First sentences; each tells the fields whose slots it has.
    pub(super) openings: &'static [&'static str],
    /// The fields in the order of the record.
    pub(super) fields: &'static [Field],
}

const fn field(key: &'static str, kind: Kind, sentence: &'static str) -> Field {
    Field { key, kind, sentence }
}

const fn flag(key: &'static str, yes: &'static str, no: &'static str) -> Field {
    Field { key, kind: Kind::Flag { yes, no }, sentence: "" }
}

/// All kinds of record.
pub(super) const SCHEMAS: &[Schema] = &[
    Schema {
        record: "person",
        openings: &[
            "{name} [lives in|is from|comes from|has a home in] {city}.",
            "{name} is {age} years old[| and lives in {city}].",
            "{name}, {age}, [lives in|is from|comes from] {city}.",
            "{name} [works as a|is a|has a job as a] {job}[| in {city}].",
            "[This is|Meet|Here is] {name}[|, a {age} year old {job}|, a {job} from {city}].",
            "[My friend|My neighbor|Our new {job}] {name} is {age}.",
        ],
        fields: &[
            field("name", Kind::Person, "The name is {name}."),
            field("age", Kind::Number(18, 79), "[{She} is {age} years old|{She} is {age}|The age is {age}|Age {age}]."),
            field(
                "city",
                Kind::Word(CITIES),
                "[{She} lives in|{She} is from|Home is|The city is|{She} comes from] {city}.",
            ),
            field("job", Kind::Word(JOBS), "[{She} works as a|{She} is a|The job is|{She} has a job as a] {job}."),
        ],
    },
    Schema {
        record: "order",
        openings: &[
            "{customer} [orders|buys|wants|needs|would like] {count} {item}.",
            "[New order|An order|Order] from {customer}[:|, it is for] {count} {item}.",
            "{count} {item} [for|go to|are for] {customer}.",
            "[Please send|Send|We send|Ship] {count} {item} to {customer}.",
            "{customer} [made|placed|sent] an order [today|this morning|on the phone].",
        ],
        fields: &[
            field("customer", Kind::Person, "The customer is {customer}."),
            field("item", Kind::Word(GOODS), "[It is for|The order is for|The items are|{She} wants] {item}."),
            field("count", Kind::Number(2, 60), "[The count is|The number is|How many:|Count:] {count}."),
            flag(
                "paid",
                "[It is paid|It is already paid|{She} has paid|The order is paid|The bill is paid].",
                "[It is not paid|It is not paid yet|{She} has not paid|The order is not paid|The bill is still open].",
            ),
        ],
    },
    Schema {
        record: "meeting",
        openings: &[
            "[The meeting|Our meeting|A meeting] about {topic} is on {day}[| at {hour} o'clock].",
            "[We meet|The team meets|We will meet|Let us meet] on {day} [at {hour} o'clock|at {hour}|\
                to talk about {topic}].",
            "[The meeting|Our meeting|The next meeting] [is|starts|begins] at {hour} o'clock[| on {day}].",
            "[There is|We have|We plan] a meeting [about {topic}|on {day}|on {day} about {topic}].",
        ],
        fields: &[
            field("topic", Kind::Word(SUBJECTS), "[It is about|The topic is|We will talk about|Topic:] {topic}."),
            field("day", Kind::Word(DAYS), "[The day is {day}|It is on {day}|We meet on {day}|Day: {day}]."),
            field(
                "hour",
                Kind::Number(8, 19),
                "[It starts at {hour} o'clock|It begins at {hour}|The hour is {hour}|It is at {hour} o'clock].",
            ),
            flag(
                "online",
                "[It is online|It will be online|We meet online|The meeting is online].",
                "[It is not online|It will not be online|We do not meet online|The meeting is not online].",
            ),
        ],
    },
    Schema {
        record: "product",
        openings: &[
            "[The|Our|These] {color} {item} [cost|are] {price} dollars.",
            "[We sell|We have|The shop sells|The shop has] {color} {item}[| for {price} dollars].",
            "[The|Our|These] {item} [cost {price} dollars|are {color}|come in {color}].",
            "{item} in {color}[| for {price} dollars|, {price} dollars].",
        ],
        fields: &[
            field("item", Kind::Word(GOODS), "They are {item}."),
            field("color", Kind::Word(COLORS), "[The color is|They are|They come in|Color:] {color}."),
            field(
                "price",
                Kind::Number(2, 99),
                "[The price is {price} dollars|They cost {price} dollars|Price: {price} dollars|The price is {price}].",
            ),
            flag(
                "in_stock",
                "[They are in stock|We have them in stock|They are in the shop now|All are in stock].",
                "[They are not in stock|We do not have them in stock|They are sold out|All are sold out].",
            ),
        ],
    },
    Schema {
        record: "flight",
        openings: &[
            "[The flight|A flight|My flight|Our flight] [from {from} to {to}|goes from {from} to {to}|\
                to {to} starts in {from}].",
            "[The flight|A flight|My flight|Our flight] on {day} [goes|is] from {from} to {to}.",
            "[I fly|We fly|{day}: we fly|On {day} I fly] from {from} to {to}[| at gate {gate}|, gate {gate}].",
            "[The plane|Our plane|A plane] to {to} [leaves|starts] from {from}[| on {day}| at gate {gate}].",
        ],
        fields: &[
            field("from", Kind::Word(&["Oslo", "Rome", "Paris", "Berlin", "London", "Madrid"]), "It starts in {from}."),
            field("to", Kind::Word(&["Vienna", "Cairo", "Lima", "Tokyo", "Boston", "Delhi"]), "It goes to {to}."),
            field("day", Kind::Word(DAYS), "[It is on {day}|The day is {day}|It leaves on {day}|Day: {day}]."),
            field(
                "gate",
                Kind::Number(1, 60),
                "[The gate is {gate}|It leaves from gate {gate}|Go to gate {gate}|Gate {gate}].",
            ),
        ],
    },
    Schema {
        record: "booking",
        openings: &[
            "{guest} [books|wants|takes|needs|has] room {room}[| for {nights} nights].",
            "[Room {room} is|We keep room {room}|Book room {room}] for {guest}[|, {nights} nights].",
            "{guest} [stays|will stay|wants to stay] [for |]{nights} nights[| in room {room}].",
            "[A booking|New booking|Booking] for {guest}[:|, it is for] [{nights} nights|room {room}].",
        ],
        fields: &[
            field("guest", Kind::Person, "The guest is {guest}."),
            field(
                "room",
                Kind::Number(1, 99),
                "[The room is {room}|It is room {room}|{She} has room {room}|Room: {room}].",
            ),
            field(
                "nights",
                Kind::Number(2, 14),
                "[{She} stays for {nights} nights|It is for {nights} nights|{She} stays {nights} nights|\
                    Nights: {nights}].",
            ),
            flag(
                "breakfast",
                "[Breakfast is included|{She} wants breakfast|With breakfast|{She} takes breakfast].",
                "[Breakfast is not included|{She} does not want breakfast|Without breakfast|No breakfast].",
            ),
        ],
    },
    Schema {
        record: "pet",
        openings: &[
            "[The {kind} of {owner} is called|{owner} has a {kind} called|{owner} owns a {kind} called] {pet}.",
            "{pet} is [a {kind}|a {age} year old {kind}|the {kind} of {owner}].",
            "{pet} the {kind} [belongs to {owner}|is {age} years old|lives with {owner}].",
            "{owner} [has|keeps|owns] a [|{age} year old ]{kind}.",
        ],
        fields: &[
            field("pet", Kind::Word(PET_NAMES), "[The name is|It is called|The pet is called|Its name is] {pet}."),
            field("kind", Kind::Word(PETS), "It is a {kind}."),
            field(
                "age",
                Kind::Number(2, 15),
                "[It is {age} years old|The age is {age}|It is {age}|The pet is {age} years old].",
            ),
            field("owner", Kind::Person, "[It belongs to|The owner is|It lives with|Owner:] {owner}."),
        ],
    },
    Schema {
        record: "loan",
        openings: &[
            "{reader} [takes|borrows|has|took] a book about {topic}[| for {days} days].",
            "[A|The|Our] book about {topic} [goes|is lent|went] to {reader}[| for {days} days].",
            "[The loan|A loan|The book] of {reader} is [for {days} days|about {topic}].",
            "{reader} [keeps|may keep|has|can have] [a|the] book for {days} days.",
        ],
        fields: &[
            field("reader", Kind::Person, "The reader is {reader}."),
            field("topic", Kind::Word(SUBJECTS), "[The book is about|The topic is|It is about|Topic:] {topic}."),
            field(
                "days",
                Kind::Number(2, 60),
                "[The loan is for {days} days|The time is {days} days|It is for {days} days|Days: {days}].",
            ),
            flag(
                "late",
                "[It is late|The book is late|{She} is late|It came back late].",
                "[It is not late|The book is not late|{She} is not late|It came back in time].",
            ),
        ],
    },
    Schema {
        record: "weather",
        openings: &[
            "[It is|It will be|We expect it to be] {sky} in {city}[| on {day}].",
            "[On {day} it|{day}: it] [is|will be] [{sky}|{degrees} degrees] in {city}.",
            "[The weather|The sky] in {city} [is|will be] {sky}[| on {day}|, {degrees} degrees].",
            "[Expect|We expect|There will be] {degrees} degrees in {city}[| on {day}].",
            "{city} is {sky}[| on {day}].",
        ],
        fields: &[
            field("city", Kind::Word(CITIES), "The city is {city}."),
            field("day", Kind::Word(DAYS), "[The day is {day}|This is for {day}|The report is for {day}|Day: {day}]."),
            field("sky", Kind::Word(SKIES), "[It is|The sky is|It will be|The weather is] {sky}."),
            field(
                "degrees",
                Kind::Number(1, 40),
                "[It is {degrees} degrees|We have {degrees} degrees|{degrees} degrees are expected|\
                    Degrees: {degrees}].",
            ),
        ],
    },
    Schema {
        record: "task",
        openings: &[
            "{owner} [must|has to|will|should|wants to|needs to] {task}[| on {day}].",
            "[On {day}|By {day}|{day}:] {owner} [must|has to|will|should|needs to] {task}.",
            "[Task|New task|A task] for {owner}: {task}[| on {day}].",
            "[Please tell|Ask|Tell|Remind] {owner} to {task}[| on {day}].",
        ],
        fields: &[
            field("task", Kind::Word(CHORES), "The task is to {task}."),
            field("owner", Kind::Person, "It is for {owner}."),
            field("day", Kind::Word(DAYS), "[The day is {day}|It is for {day}|It is due on {day}|Day: {day}]."),
            flag(
                "done",
                "[It is done|It is already done|The task is done|This is done now].",
                "[It is not done|It is not done yet|The task is not done|This is still open].",
            ),
        ],
    },
];
