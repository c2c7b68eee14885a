//! Compiles the CUDA kernels, where the program is built with them.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    {
        println!("cargo::rerun-if-changed=kernels");
        // The compiler is found as candle's build finds it: by NVCC, CUDA_HOME or PATH; CUDA_COMPUTE_CAP says for which GPU.
        cudaforge::KernelBuilder::new()
            .source_dir("kernels")
            .arg("-std=c++17")
            .arg("-O3")
            .build_ptx()?
            .write(std::path::Path::new(&std::env::var("OUT_DIR")?).join("kernels.rs"))?;
    }
    Ok(())
}
