//! The structs of the Parquet format: <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>

use super::thrift::Shape::{self, Binary, Bool, Double, I8, I16, I32, I64, List, Struct};

/// `FileMetaData`.
pub(super) const FOOTER: &[Shape] = &[
    I32,
    List(&SCHEMA_ELEMENT),
    I64,
    List(&ROW_GROUP),
    List(&KEY_VALUE),
    Binary,
    List(&Struct(&[Struct(&[])])),
    ENCRYPTION_ALGORITHM,
    Binary,
];

/// `PageHeader`: also its uncompressed size (2) and its compressed size (3).
pub(super) const PAGE: &[Shape] = &[
    I32,
    I32,
    I32,
    I32,
    Struct(&[I32, I32, I32, I32, STATISTICS]),
    Struct(&[]),
    Struct(&[I32, I32, Bool]),
    Struct(&[I32, I32, I32, I32, I32, I32, Bool, STATISTICS]),
];

const SCHEMA_ELEMENT: Shape = Struct(&[I32, I32, I32, Binary, I32, I32, I32, I32, I32, LOGICAL_TYPE]);

/// String, map, list, enum, decimal, date, time, timestamp, interval, integer, null, JSON, BSON, UUID, half float, variant,
/// geometry, geography.
const LOGICAL_TYPE: Shape = Struct(&[
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[I32, I32]),
    Struct(&[]),
    TIME,
    TIME,
    Struct(&[]),
    Struct(&[I8, Bool]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[I8]),
    Struct(&[Binary]),
    Struct(&[Binary, I32]),
]);

/// Whether it is UTC, and milliseconds, microseconds or nanoseconds.
const TIME: Shape = Struct(&[Bool, Struct(&[Struct(&[]), Struct(&[]), Struct(&[])])]);

const ROW_GROUP: Shape = Struct(&[List(&COLUMN_CHUNK), I64, I64, List(&SORTING_COLUMN), I64, I64, I16]);

const SORTING_COLUMN: Shape = Struct(&[I32, Bool, Bool]);

const COLUMN_CHUNK: Shape = Struct(&[Binary, I64, COLUMN_META_DATA, I64, I32, I64, I32, COLUMN_CRYPTO, Binary]);

const COLUMN_META_DATA: Shape = Struct(&[
    I32,
    List(&I32),
    List(&Binary),
    I32,
    I64,
    I64,
    I64,
    List(&KEY_VALUE),
    I64,
    I64,
    I64,
    STATISTICS,
    List(&Struct(&[I32, I32, I32])),
    I64,
    I32,
    Struct(&[I64, List(&I64), List(&I64)]),
    Struct(&[Struct(&[Double, Double, Double, Double, Double, Double, Double, Double]), List(&I32)]),
]);

const STATISTICS: Shape = Struct(&[Binary, Binary, I64, I64, Binary, Binary, Bool, Bool]);

const KEY_VALUE: Shape = Struct(&[Binary, Binary]);

const COLUMN_CRYPTO: Shape = Struct(&[Struct(&[]), Struct(&[List(&Binary), Binary])]);

const ENCRYPTION_ALGORITHM: Shape = Struct(&[Struct(&[Binary, Binary, Bool]), Struct(&[Binary, Binary, Bool])]);
