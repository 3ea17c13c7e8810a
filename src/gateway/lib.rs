//! stub
pub mod cli;
pub mod config;
pub mod config_source;
pub mod config_table;
pub mod control;
pub mod log;
pub mod pages;
