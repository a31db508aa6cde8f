//! Orbit ETL.
