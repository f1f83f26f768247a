//! A KV cache in host memory, stored and read by the formulas written plainly.

#![allow(dead_code, reason = "no test uses all of it")]

use half::bf16;
use takt_engine::quant::e4m3;
use takt_kernels_cu::launch::{DeviceAddress, KvCache, KvFormat};

use crate::emulator::Buffer;

/// Numbers in about [-2, 2) that differ from each other, the same for the same seed.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u32 << 22) as f32 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

/// One row of a cache, in its format.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub bytes: Vec<u8>,
    pub scale: f32,
}

impl Row {
    /// As engine/src/kv/row.rs stores it, brain floats apart: the largest magnitude maps to the format's largest value.
    pub fn store(format: KvFormat, values: &[f32]) -> Self {
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scaled = |top: f32| {
            if largest < f32::MIN_POSITIVE * top { (0.0, 0.0) } else { (largest / top, top / largest) }
        };
        match format {
            KvFormat::Bf16 => {
                let bytes = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
                Self { bytes, scale: f32::NAN }
            }
            KvFormat::Fp8 => {
                let (scale, inverse) = scaled(e4m3::MAX);
                Self { bytes: values.iter().map(|value| e4m3::encode(value * inverse)).collect(), scale }
            }
            KvFormat::Int8 => {
                let (scale, inverse) = scaled(127.0);
                let code = |value: &f32| ((value * inverse).round_ties_even() as i8).cast_unsigned();
                Self { bytes: values.iter().map(code).collect(), scale }
            }
        }
    }

    /// The values it holds.
    pub fn read(&self, format: KvFormat) -> Vec<f64> {
        match format {
            KvFormat::Bf16 => {
                self.bytes.as_chunks().0.iter().map(|&pair| bf16::from_le_bytes(pair).to_f64()).collect()
            }
            KvFormat::Fp8 => self.scaled(|code| f64::from(e4m3::decode(code))),
            KvFormat::Int8 => self.scaled(|code| f64::from(code.cast_signed())),
        }
    }

    fn scaled(&self, decode: impl Fn(u8) -> f64) -> Vec<f64> {
        self.bytes.iter().map(|&code| decode(code) * f64::from(self.scale)).collect()
    }
}

/// One layer's cache. What was not written is NaN.
#[derive(Debug, Clone)]
pub struct HostCache {
    pub format: KvFormat,
    pub num_kv_heads: usize,
    pub capacity: usize,
    pub head_dim: usize,
    pub keys: Vec<u8>,
    pub values: Vec<u8>,
    pub key_scales: Vec<f32>,
    pub value_scales: Vec<f32>,
}

impl HostCache {
    pub fn new(
        format: KvFormat,
        num_lanes: usize,
        num_kv_heads: usize,
        capacity: usize,
        head_dim: usize,
    ) -> Self {
        let num_rows = num_lanes * num_kv_heads * capacity;
        let bytes = vec![0xff; num_rows * head_dim * format.element_bytes()];
        let scales = vec![f32::NAN; num_rows];
        Self {
            format,
            num_kv_heads,
            capacity,
            head_dim,
            keys: bytes.clone(),
            values: bytes,
            key_scales: scales.clone(),
            value_scales: scales,
        }
    }

    fn row_bytes(&self) -> usize {
        self.head_dim * self.format.element_bytes()
    }

    pub fn row_idx(&self, lane: usize, kv_head: usize, row: usize) -> usize {
        (lane * self.num_kv_heads + kv_head) * self.capacity + row
    }

    /// Stores noise of `seed` as all heads' keys and values of a row.
    pub fn store_noise(&mut self, lane: usize, row: usize, seed: u64) {
        let head_dim = self.head_dim;
        let values = noise(seed, 2 * self.num_kv_heads * head_dim);
        let (keys, values) = values.split_at(self.num_kv_heads * head_dim);
        for kv_head in 0..self.num_kv_heads {
            let at = kv_head * head_dim..(kv_head + 1) * head_dim;
            // Rows of different sizes, so that scales matter.
            let size = 0.25 + (seed % 7) as f32 * 0.25;
            let sized = |values: &[f32]| values.iter().map(|value| value * size).collect::<Vec<_>>();
            self.set_key(lane, kv_head, row, &Row::store(self.format, &sized(&keys[at.clone()])));
            self.set_value(lane, kv_head, row, &Row::store(self.format, &sized(&values[at])));
        }
    }

    pub fn key(&self, lane: usize, kv_head: usize, row: usize) -> Row {
        let idx = self.row_idx(lane, kv_head, row);
        let bytes = self.keys[idx * self.row_bytes()..(idx + 1) * self.row_bytes()].to_vec();
        Row { bytes, scale: self.key_scales[idx] }
    }

    pub fn value(&self, lane: usize, kv_head: usize, row: usize) -> Row {
        let idx = self.row_idx(lane, kv_head, row);
        let bytes = self.values[idx * self.row_bytes()..(idx + 1) * self.row_bytes()].to_vec();
        Row { bytes, scale: self.value_scales[idx] }
    }

    fn set_key(&mut self, lane: usize, kv_head: usize, row: usize, stored: &Row) {
        let idx = self.row_idx(lane, kv_head, row);
        let width = self.row_bytes();
        self.keys[idx * width..(idx + 1) * width].copy_from_slice(&stored.bytes);
        self.key_scales[idx] = stored.scale;
    }

    fn set_value(&mut self, lane: usize, kv_head: usize, row: usize, stored: &Row) {
        let idx = self.row_idx(lane, kv_head, row);
        let width = self.row_bytes();
        self.values[idx * width..(idx + 1) * width].copy_from_slice(&stored.bytes);
        self.value_scales[idx] = stored.scale;
    }

    /// Copies a row of all heads from another cache of the same shape.
    pub fn copy_row_of(&mut self, other: &Self, lane: usize, row: usize) {
        for kv_head in 0..self.num_kv_heads {
            self.set_key(lane, kv_head, row, &other.key(lane, kv_head, row));
            self.set_value(lane, kv_head, row, &other.value(lane, kv_head, row));
        }
    }

    /// Copies rows `[0, len)` of a lane to another.
    pub fn copy_lane(&mut self, from: usize, to: usize, len: usize) {
        for (kv_head, row) in (0..self.num_kv_heads).flat_map(|head| (0..len).map(move |row| (head, row))) {
            let (key, value) = (self.key(from, kv_head, row), self.value(from, kv_head, row));
            self.set_key(to, kv_head, row, &key);
            self.set_value(to, kv_head, row, &value);
        }
    }

    /// Copies a row of all heads.
    pub fn copy_row(&mut self, lane: usize, from: usize, to: usize) {
        for kv_head in 0..self.num_kv_heads {
            let (key, value) = (self.key(lane, kv_head, from), self.value(lane, kv_head, from));
            self.set_key(lane, kv_head, to, &key);
            self.set_value(lane, kv_head, to, &value);
        }
    }
}

/// A [`HostCache`] where kernels find it.
#[derive(Debug)]
pub struct DeviceCache {
    pub keys: Buffer<u8>,
    pub values: Buffer<u8>,
    pub key_scales: Buffer<f32>,
    pub value_scales: Buffer<f32>,
    pub shape: HostCache,
}

impl DeviceCache {
    pub fn of(cache: &HostCache) -> Self {
        Self {
            keys: Buffer::from_slice(&cache.keys),
            values: Buffer::from_slice(&cache.values),
            key_scales: Buffer::from_slice(&cache.key_scales),
            value_scales: Buffer::from_slice(&cache.value_scales),
            shape: cache.clone(),
        }
    }

    /// Brain floats have no scales: their address is null.
    pub fn launched(&self) -> KvCache {
        let shape = &self.shape;
        let scales = |buffer: &Buffer<f32>| {
            if shape.format.has_scales() { buffer.address() } else { DeviceAddress::NULL }
        };
        KvCache {
            format: shape.format,
            keys: self.keys.address(),
            values: self.values.address(),
            key_scales: scales(&self.key_scales),
            value_scales: scales(&self.value_scales),
            num_kv_heads: shape.num_kv_heads,
            capacity: shape.capacity,
            head_dim: shape.head_dim,
        }
    }

    pub fn read(&self) -> HostCache {
        HostCache {
            keys: self.keys.to_vec(),
            values: self.values.to_vec(),
            key_scales: self.key_scales.to_vec(),
            value_scales: self.value_scales.to_vec(),
            ..self.shape.clone()
        }
    }
}
