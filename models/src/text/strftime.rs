//! The part of `strftime` that chat templates use to tell the model the date.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const SECONDS_A_DAY: u64 = 86_400;

/// Formats a time in seconds since 1970, in UTC. Returns the first directive that it does not know as an error.
pub(crate) fn strftime(format: &str, unix_seconds: u64) -> Result<String, char> {
    let days = unix_seconds / SECONDS_A_DAY;
    let second_of_day = unix_seconds % SECONDS_A_DAY;
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let (year, month, day) = civil(days);
    let weekday = WEEKDAYS[(days as usize + 4) % WEEKDAYS.len()];
    let month_name = MONTHS[month as usize - 1];

    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let directive = characters.next().unwrap_or('%');
        text += &match directive {
            'Y' => format!("{year:04}"),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'B' => month_name.into(),
            'b' => month_name[..3].into(),
            'A' => weekday.into(),
            'a' => weekday[..3].into(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'p' => if hour < 12 { "AM" } else { "PM" }.into(),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'F' => format!("{year:04}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".into(),
            'z' => "+0000".into(),
            '%' => "%".into(),
            unknown => return Err(unknown),
        };
    }
    Ok(text)
}

/// Year, month and day of the day that lies `days` after 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // The calendar repeats every 400 years, which keeps the loop short whatever the clock says.
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let mut year = 1970 + days / DAYS_IN_400_YEARS * 400;
    days %= DAYS_IN_400_YEARS;
    loop {
        let days_in_year = if is_leap(year) { 366 } else { 365 };
        if days < days_in_year {
            break;
        }
        days -= days_in_year;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for days_in_month in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < days_in_month {
            break;
        }
        days -= days_in_month;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%d %b %Y", 0), Ok("01 Jan 1970".into()));
        assert_eq!(strftime("%A, %d %B %Y %H:%M:%S", 1_709_210_096), Ok("Thursday, 29 February 2024 12:34:56".into()));
        assert_eq!(strftime("%Y-%m-%d", 951_868_800), Ok("2000-03-01".into()));
        assert_eq!(strftime("%I %p %%", 0), Ok("12 AM %".into()));
        assert_eq!(strftime("%Q", 0), Err('Q'));
    }
}
