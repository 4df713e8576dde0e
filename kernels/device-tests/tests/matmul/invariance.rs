//! A row has the same bits whatever rows it comes with, whichever kernel runs and in whichever order its threads do.

use device_tests::Order;
use kernels::device::{DeviceFormat, DeviceLinear};

use crate::{
    case::{Random, activations, device, other_device, partial_sums, product, weight},
    skipped,
};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_row_does_not_see_the_others() {
    if skipped() {
        return;
    }
    let device = device(Order::Forward);
    let random = &mut Random::new(17);
    for (format, width) in
        [(DeviceFormat::F16, 328), (DeviceFormat::BF16, 200), (DeviceFormat::Q8_0, 352), (DeviceFormat::Q4_K, 512)]
    {
        let out = 21;
        let (weight, _) = weight(&device, format, (out, width), random);
        let linear = DeviceLinear::new(weight).with_splits(2).unwrap();
        let xs = activations(linear.activations(), 200, width, random);
        let all = partial_sums(&linear, &xs, &device);
        // Every width of the kernels, with the rows in other places of a tile.
        for (first, rows) in [(0, 1), (77, 1), (140, 8), (3, 15), (60, 30), (100, 61), (1, 190)] {
            let some = partial_sums(&linear, &xs[first * width..(first + rows) * width], &device);
            for split in 0..2 {
                let (from, to) = ((split * 200 + first) * out, (split * 200 + first + rows) * out);
                let expected = bits(&all[from..to]);
                assert_eq!(bits(&some[split * rows * out..][..rows * out]), expected, "{format}, {rows} rows");
            }
        }
    }
}

#[test]
fn blocks_that_add_the_splits_do_it_in_the_order_of_the_reader() {
    if skipped() {
        return;
    }
    // Two tiles of outputs and two of rows fill four multiprocessors.
    let (device, random) = (other_device((9, 0), 4), &mut Random::new(37));
    for (format, width) in
        [(DeviceFormat::F16, 500), (DeviceFormat::BF16, 200), (DeviceFormat::Q8_0, 736), (DeviceFormat::Q4_K, 768)]
    {
        let out = 131;
        let linear = DeviceLinear::new(weight(&device, format, (out, width), random).0).with_splits(3).unwrap();
        let xs = activations(linear.activations(), 129, width, random);
        assert_eq!([128, 129].map(|rows| linear.num_sums(device.facts(), rows)), [3, 1]);
        let all = product(&linear, &xs, &device);
        for (first, rows) in [(0, 9), (128, 1), (1, 128)] {
            let some = product(&linear, &xs[first * width..(first + rows) * width], &device);
            assert_eq!(bits(&some), bits(&all[first * out..(first + rows) * out]), "{format}, {rows} rows");
        }
    }
}

#[test]
fn the_order_of_threads_does_not_matter() {
    if skipped() {
        return;
    }
    for (format, width) in [(DeviceFormat::BF16, 700), (DeviceFormat::Q8_0, 736), (DeviceFormat::Q4_K, 1280)] {
        for rows in [2, 65] {
            let run = |order| {
                let (device, random) = (device(order), &mut Random::new(19));
                let linear = DeviceLinear::new(weight(&device, format, (33, width), random).0);
                let xs = activations(linear.activations(), rows, width, random);
                bits(&partial_sums(&linear, &xs, &device))
            };
            let expected = run(Order::Forward);
            assert_eq!(run(Order::Backward), expected, "{format}, {rows} rows");
            assert_eq!(run(Order::Shuffled), expected, "{format}, {rows} rows");
        }
    }
}

#[test]
fn splits_depend_on_the_weight_alone() {
    if skipped() {
        return;
    }
    let device = device(Order::Forward);
    let facts = device.facts();
    let splits = |format, out, width| {
        let weight = kernels::device::DeviceWeight::random(&device, format, (out, width), 1).unwrap();
        DeviceLinear::new(weight).num_splits(facts)
    };
    // 128 blocks on 132 multiprocessors; one split where blocks are plenty or k is short.
    assert_eq!(splits(DeviceFormat::F16, 4096, 4096), 4);
    assert_eq!(splits(DeviceFormat::F16, 40000, 256), 1);
    assert_eq!(splits(DeviceFormat::Q4_K, 128, 256), 1);
    assert_eq!(splits(DeviceFormat::Q8_0, 128, 4096), 16);
}
