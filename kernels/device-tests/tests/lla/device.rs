//! The way that a model takes: arrays, checked launches, a device, one by one and as a recording.

use std::sync::Arc;

use device_tests::{HostDevice, Order};
use kernels::{
    KernelError, Ridge,
    device::{
        Array, Device, ElementType, LlaRounds, LlaSlope, LlaTensors, LlaUploadedPlan, LlaUploadedRidge, LlaWay,
        LlaWork, Recording, lla_launches, run,
    },
};

use crate::{
    case::{Case, Way, shape},
    skipped,
};

#[test]
fn a_device_gives_what_its_launches_give() {
    if skipped() {
        return;
    }
    let host = HostDevice::new(1 << 28, Order::Shuffled);
    let device: Arc<dyn Device> = host.clone();
    let case = Case::causal(shape(4, 2, 32, 32), 70, 5, 3);
    let expected = case.run(Way::Decode, ElementType::F32);
    let arrays = [&case.q, &case.keys, &case.values].map(|values| Array::from_slice(&device, values).unwrap());
    let output = Array::new(&device, ElementType::F32, expected.output.len()).unwrap();
    let plan = LlaUploadedPlan::new(&device, &case.plan, case.shape).unwrap();
    let ridge = LlaUploadedRidge::new(&device, Ridge::PerRow(&case.ridge)).unwrap();
    let mut work = LlaWork::new(&device).unwrap();
    let launches = |work: &mut LlaWork, output: &Array| {
        let tensors = LlaTensors { q: &arrays[0], keys: &arrays[1], values: &arrays[2], output };
        lla_launches((LlaWay::Decode, &plan, case.scale), tensors, (LlaSlope::Solve(&ridge, LlaRounds::decode()), work))
    };
    let made = launches(&mut work, &output).unwrap();
    run(&*device, &made).unwrap();
    assert_eq!(output.read::<f32>().unwrap(), expected.output);
    assert_eq!(work.take_counters().unwrap().iterations, expected.counters.iterations);
    assert_eq!(work.take_counters().unwrap().iterations, 0, "taken");

    output.clear().unwrap();
    let before = host.num_launches();
    let recording = Recording::new(&device, made).unwrap();
    assert_eq!(host.num_launches(), before, "recording runs nothing");
    recording.replay().unwrap();
    assert_eq!(host.num_launches() - before, recording.len());
    assert_eq!(output.read::<f32>().unwrap(), expected.output);

    let short = output.slice(0..expected.output.len() - 1).unwrap();
    let refused = launches(&mut work, &short).unwrap_err();
    assert!(matches!(refused, KernelError::Length { what: "output", .. }), "{refused}");
    let other = Array::new(&device, ElementType::F16, expected.output.len()).unwrap();
    let refused = launches(&mut work, &other).unwrap_err();
    assert!(matches!(refused, KernelError::Element { what: "output", .. }), "{refused}");
}

#[test]
fn memory_is_counted_and_given_back() {
    let device: Arc<dyn Device> = HostDevice::new(4096, Order::Forward);
    let array = Array::new(&device, ElementType::U8, 3000).unwrap();
    assert_eq!(device.free_bytes().unwrap(), 1096);
    let refused = Array::new(&device, ElementType::F32, 300).unwrap_err();
    assert!(matches!(refused, KernelError::DeviceMemory { needed: 1200, free: 1096 }), "{refused}");
    let parts = [(ElementType::F32, 10), (ElementType::U32, 65), (ElementType::F16, 3)];
    assert_eq!(Array::carved_bytes(&parts), 256 + 512 + 256);
    let cut = array.carve(&parts).unwrap();
    assert!(cut.iter().all(|part| part.address() % 256 == 0), "{cut:?}");
    drop(array);
    assert_eq!(device.free_bytes().unwrap(), 1096, "its parts live");
    cut[1].write(60, &[1u32, 2, 3, 4, 5]).unwrap();
    assert_eq!(cut[1].slice(61..63).unwrap().read::<u32>().unwrap(), [2, 3]);
    assert!(cut[1].write(61, &[1u32, 2, 3, 4, 5]).is_err() && cut[1].write(0, &[1f32]).is_err());
    let other = Array::zeros(&device, ElementType::U32, 65).unwrap();
    cut[1].copy_to(&other).unwrap();
    assert_eq!(other.slice(60..65).unwrap().read::<u32>().unwrap(), [1, 2, 3, 4, 5]);
    assert!(cut[1].copy_to(&cut[1]).is_err() && cut[0].copy_to(&other).is_err());
    drop(other);
    assert!(cut[1].slice(60..66).is_err() && cut[0].carve(&parts).is_err());
    drop(cut);
    assert_eq!(device.free_bytes().unwrap(), 4096);
}
