//! The devices that CUDA would see, in its order.

/// Picks devices as `CUDA_VISIBLE_DEVICES` does: numbers or starts of UUIDs; what follows the first name of no device is
/// not visible. `uuids` are those of all devices, `None` where a device was not asked. Returns indices into it, and the
/// first name that is not a device, if any.
pub(crate) fn visible<'a>(spec: Option<&'a str>, uuids: &[Option<String>]) -> (Vec<usize>, Option<&'a str>) {
    let Some(spec) = spec else { return ((0..uuids.len()).collect(), None) };
    let mut picked = Vec::new();
    for name in spec.split(',').map(str::trim) {
        // CUDA documents -1 as the end of the list.
        if name.is_empty() || name == "-1" {
            break;
        }
        let index = match name.parse::<usize>() {
            Ok(index) => Some(index).filter(|index| *index < uuids.len()),
            Err(_) => by_uuid(name, uuids),
        };
        match index {
            Some(index) if !picked.contains(&index) => picked.push(index),
            Some(_) => {}
            None => return (picked, Some(name)),
        }
    }
    (picked, None)
}

/// The one device whose UUID begins in this way.
fn by_uuid(start: &str, uuids: &[Option<String>]) -> Option<usize> {
    if !start.starts_with("GPU-") {
        return None;
    }
    let mut matching =
        uuids.iter().enumerate().filter(|(_, uuid)| uuid.as_ref().is_some_and(|uuid| uuid.starts_with(start)));
    let (index, _) = matching.next()?;
    matching.next().is_none().then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_picked_in_the_order_of_the_list() {
        let uuids: Vec<Option<String>> =
            vec![Some("GPU-aa01".into()), Some("GPU-aa02".into()), None, Some("GPU-bb03".into())];
        for (spec, expected) in [
            (None, (vec![0, 1, 2, 3], None)),
            (Some(""), (vec![], None)),
            (Some("-1"), (vec![], None)),
            (Some("3,0"), (vec![3, 0], None)),
            (Some(" 1 , 1 "), (vec![1], None)),
            (Some("GPU-bb,0"), (vec![3, 0], None)),
            (Some("GPU-aa,0"), (vec![], Some("GPU-aa"))),
            (Some("1,9,0"), (vec![1], Some("9"))),
            (Some("0,-1,1"), (vec![0], None)),
            (Some("MIG-1234"), (vec![], Some("MIG-1234"))),
            (Some("2"), (vec![2], None)),
        ] {
            assert_eq!(visible(spec, &uuids), expected, "{spec:?}");
        }
    }
}
